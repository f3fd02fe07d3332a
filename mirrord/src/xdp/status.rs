//! What an XDP mirror tells of itself.

use std::sync::Arc;

use fluxcap_proto::v1::MirrorStatus;

use crate::counters::Books;
use crate::stats::ReadCounters;

/// Copies that the kernel handed to no output without saying so; the programs' reason of the same name is not used here.
const LEFT_OUT: &str = "redirect_failed";

/// A reader of counters for those who ask for the status. What cannot be read is left out.
/// Behind the first `devices` outputs there is a ring, perhaps.
pub(super) fn reader(books: Arc<Books>, rules: usize, devices: usize) -> Arc<ReadCounters> {
    Arc::new(move |status: &mut MirrorStatus| {
        if let Err(error) = books.show(status, rules, devices) {
            tracing::warn!(%error, "cannot read the counters of a mirror");
        } else {
            close(status);
        }
    })
}

/// Copies that were to be made and are counted nowhere: those that the kernel left out. While frames pass, those on their way are among them.
fn close(status: &mut MirrorStatus) {
    let counted: u64 = [
        status.mirrored_frames,
        status.not_selected_frames,
        status.sampled_out_frames,
        status.rate_limited_frames,
    ]
    .into_iter()
    .chain(status.dropped_frames.values().copied())
    .sum();
    let left_out = (status.seen_frames + status.copied_frames).saturating_sub(counted);
    if left_out > 0 {
        *status
            .dropped_frames
            .entry(LEFT_OUT.to_owned())
            .or_default() += left_out;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_was_left_out_by_the_kernel() {
        let mut status = MirrorStatus {
            seen_frames: 10,
            copied_frames: 6,
            mirrored_frames: 9,
            not_selected_frames: 4,
            ..MirrorStatus::default()
        };
        status.dropped_frames.insert("oversize".to_owned(), 1);
        close(&mut status);
        assert_eq!(status.dropped_frames[LEFT_OUT], 2);
        let closed = status.clone();
        close(&mut status);
        assert_eq!(status, closed);
    }
}
