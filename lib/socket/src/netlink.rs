//! Requests to rtnetlink and the frame of its answers.

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer};

/// `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// `struct ifinfomsg`.
const IFINFO_LEN: usize = 16;

/// Which interfaces to ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    All,
    Index(u32),
    Name(&'a str),
}

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// RTM_NEWLINK and its payload.
    NewLink(&'a [u8]),
    /// RTM_DELLINK and its payload.
    DelLink(&'a [u8]),
    /// The end of a dump.
    Done,
    /// An errno, positive; 0 is a confirmation.
    Error(i32),
    /// Nothing of interest.
    Other,
}

/// An RTM_GETLINK request. `None`: a name that no interface can have.
pub(crate) fn link_request(sequence: u32, wanted: Wanted<'_>) -> Option<Vec<u8>> {
    let (flags, index) = match wanted {
        Wanted::All => (NLM_F_REQUEST | NLM_F_DUMP, 0),
        Wanted::Index(index) => (NLM_F_REQUEST, index),
        Wanted::Name(_) => (NLM_F_REQUEST, 0),
    };
    let mut body = vec![0; IFINFO_LEN];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    if let Wanted::Name(name) = wanted {
        append_name(&mut body, name)?;
    }
    let length = u32::try_from(HEADER_LEN + body.len()).ok()?;
    let mut message = Vec::with_capacity(HEADER_LEN + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(libc::RTM_GETLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    Some(message)
}

/// The kernel looks up both kinds of names in both attributes, but checks the length of each.
fn append_name(body: &mut Vec<u8>, name: &str) -> Option<()> {
    const MAX_ALTNAME: usize = 127;
    if name.is_empty() || name.len() > MAX_ALTNAME || name.contains('\0') {
        return None;
    }
    let kind = if name.len() < libc::IFNAMSIZ {
        libc::IFLA_IFNAME
    } else {
        libc::IFLA_ALT_IFNAME
    };
    let length = u16::try_from(4 + name.len() + 1).ok()?;
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(name.as_bytes());
    body.push(0);
    body.resize(body.len().next_multiple_of(4), 0);
    Some(())
}

/// The messages of a datagram, each with its sequence number and whether a dump was interrupted by a
/// change. A message with an impossible length ends the walk.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u32, bool, Message<'_>)> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        if length < HEADER_LEN {
            return None;
        }
        let message = NetlinkBuffer::new_checked(rest.get(..length)?).ok()?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let interrupted = message.flags() & NLM_F_DUMP_INTR != 0;
        Some((message.sequence_number(), interrupted, classify(&message)))
    })
}

fn classify<'a>(message: &NetlinkBuffer<&'a [u8]>) -> Message<'a> {
    let payload = message.payload();
    match message.message_type() {
        libc::RTM_NEWLINK => Message::NewLink(payload),
        libc::RTM_DELLINK => Message::DelLink(payload),
        NLMSG_DONE => Message::Done,
        NLMSG_ERROR => {
            let code = payload.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b));
            Message::Error(code.saturating_neg())
        }
        _ => Message::Other,
    }
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
