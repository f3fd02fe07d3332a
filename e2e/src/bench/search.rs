//! The highest rate without loss, RFC 2544 section 26.1: by bisection, and proved by a longer trial.

use anyhow::Result;

use crate::bench::trial::Outcome;

/// Back from a rate that did not hold in the long trial.
const RETREAT: f64 = 0.93;
/// Long trials before the search is given up.
const PROOFS: usize = 5;
/// When less than this share comes through, it was no accident.
const CLEAR: f64 = 0.85;
/// A source that reaches less than this share of the rate is at its own limit.
const REACHED: f64 = 0.95;

/// How to search.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// Frames per second of the first trial.
    pub first: f64,
    /// How much more the second trial offers than the first, when that lost no frame. The third takes a longer stride.
    pub stride: f64,
    /// Ratio of the bounds at which they are close enough.
    pub close: f64,
    /// Short trials, at most.
    pub trials: usize,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The long trial without loss.
    pub proof: Outcome,
    /// The rate that it was told to offer.
    pub rate: f64,
    /// Whether the sources could not offer more: the system may be able to do more.
    pub at_source_limit: bool,
}

/// How long a trial is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// To find the place.
    Short,
    /// To prove it.
    Long,
}

/// Whether a system held a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Yes,
    No,
    /// It held all that the sources could offer, which was less.
    SourceLimit,
}

impl Held {
    fn of(outcome: &Outcome, rate: f64) -> Held {
        match outcome.is_lossless() {
            false => Held::No,
            true if outcome.offered_rate() < REACHED * rate => Held::SourceLimit,
            true => Held::Yes,
        }
    }
}

/// Searches; `trial` offers a rate. `None` when every rate loses frames.
///
/// A machine that others use loses a frame now and then at any rate, so each loss is looked at twice.
///
/// # Errors
/// Those of the trials.
pub fn search(
    plan: Search,
    mut trial: impl FnMut(f64, Length) -> Result<Outcome>,
) -> Result<Option<Found>> {
    let mut twice = |rate: f64, length| -> Result<(Outcome, Held)> {
        let outcome = trial(rate, length)?;
        let outcome = match Held::of(&outcome, rate) {
            Held::Yes | Held::SourceLimit => outcome,
            Held::No if outcome.delivered_rate() < CLEAR * outcome.offered_rate() => outcome,
            Held::No => trial(rate, length)?,
        };
        let held = Held::of(&outcome, rate);
        Ok((outcome, held))
    };
    let (mut good, mut bad) = (None::<f64>, None::<f64>);
    let mut limited = false;
    let mut stride = plan.stride;
    let mut rate = plan.first;
    for _ in 0..plan.trials {
        let (outcome, held) = twice(rate, Length::Short)?;
        match held {
            Held::Yes => good = Some(rate),
            _ => bad = Some(rate),
        }
        limited = if held == Held::Yes {
            limited
        } else {
            held == Held::SourceLimit
        };
        rate = match (good, bad) {
            (Some(good), Some(bad)) if bad / good <= plan.close => break,
            (Some(good), Some(bad)) => (good * bad).sqrt(),
            (Some(good), None) => {
                let step = stride;
                stride = (stride * stride).min(2.0);
                good * step
            }
            // What came through of too much is a hint, when it is not much less.
            (None, _) => (outcome.delivered_rate() * RETREAT).clamp(rate / 3.0, rate / 1.2),
        };
    }
    let mut rate = good.unwrap_or(rate);
    for _ in 0..PROOFS {
        let (proof, held) = twice(rate, Length::Long)?;
        if held != Held::No {
            return Ok(Some(Found {
                proof,
                rate,
                at_source_limit: limited || held == Held::SourceLimit,
            }));
        }
        limited = false;
        rate = (proof.delivered_rate() * RETREAT).clamp(rate * 0.6, rate * RETREAT);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::trial::tests::second;

    const PLAN: Search = Search {
        first: 100_000.0,
        stride: 1.5,
        close: 1.04,
        trials: 14,
    };

    /// A system that can do `capacity`, fed by a source that can do `most`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a test's numbers"
    )]
    fn system(capacity: f64, most: f64) -> impl FnMut(f64, Length) -> Result<Outcome> {
        move |rate, _| {
            let offered = rate.min(most);
            Ok(second(offered as u64, offered.min(capacity) as u64))
        }
    }

    #[test]
    fn the_capacity_is_found_from_above_and_from_below() {
        for capacity in [3_000.0, 99_000.0, 100_000.0, 870_000.0, 3_900_000.0] {
            let found = search(PLAN, system(capacity, 1e9))
                .expect("works")
                .expect("is there");
            let ratio = found.proof.offered_rate() / capacity;
            assert!((0.9..=1.0).contains(&ratio), "{capacity}: {ratio}");
            assert!(!found.at_source_limit);
        }
    }

    #[test]
    fn a_source_at_its_limit_is_told() {
        let found = search(PLAN, system(1e9, 700_000.0))
            .expect("works")
            .expect("is there");
        assert!(found.at_source_limit);
        assert!(found.proof.offered_rate() >= 650_000.0);
    }

    #[test]
    fn a_system_that_passes_nothing_has_no_rate() {
        assert!(search(PLAN, system(0.0, 1e9)).expect("works").is_none());
    }

    #[test]
    fn one_hiccup_does_not_lower_the_rate() {
        let mut count = 0;
        let mut steady = system(500_000.0, 1e9);
        let found = search(PLAN, |rate, length| {
            count += 1;
            if count == 4 {
                Ok(second(100, 99))
            } else {
                steady(rate, length)
            }
        });
        let found = found.expect("works").expect("is there");
        assert!(found.proof.offered_rate() > 475_000.0);
    }
}
