//! The closed lists of reasons under which frames are counted.

use std::fmt;

/// Makes an enum with a stable index and a snake_case name for each variant.
macro_rules! reasons {
    ($(#[$doc:meta])* $type:ident { $($(#[$vdoc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $type { $($(#[$vdoc])* $variant,)* }

        impl $type {
            /// Every value, in the order in which the counters lie in memory.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name used in output and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Place in [`Self::ALL`] and of the counter in memory: part of the layout.
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why a producer did not publish a frame that it had received.
    DropReason {
        /// The filter did not select it.
        Filtered = "filtered",
        /// Sampling left it out.
        SampledOut = "sampled_out",
        /// It travelled in a direction that was not asked for.
        Direction = "direction",
        /// It is longer than a record can hold.
        Oversize = "oversize",
        /// It is too short or its headers make no sense.
        Malformed = "malformed",
        /// It was sent by fluxcap itself.
        OwnTraffic = "own_traffic",
        /// It already carries the mark of a copy.
        LoopGuard = "loop_guard",
        /// There was no ring to put it into.
        RingAbsent = "ring_absent",
        /// The capture was paused.
        Paused = "paused",
        /// It was in flight in a producer that was killed.
        Killed = "killed",
        /// None of the above; zero in a healthy system.
        Other = "other",
    }
}

reasons! {
    /// What a consumer did with a frame that the ring delivered.
    Outcome {
        /// It left the host.
        Sent = "sent",
        /// It was cut to fit; informational, it is counted under its final outcome too.
        Truncated = "truncated",
        /// The filter did not select it.
        Filtered = "filtered",
        /// Sampling left it out.
        SampledOut = "sampled_out",
        /// It is longer than the device's MTU (EMSGSIZE).
        Oversize = "oversize",
        /// The device had no buffer for it (ENOBUFS), also after retries.
        Enobufs = "enobufs",
        /// The device is down (ENETDOWN).
        LinkDown = "link_down",
        /// The device does not exist any more (ENXIO, ENODEV).
        NoInterface = "no_interface",
        /// The device has no carrier.
        NoCarrier = "no_carrier",
        /// The rate limit was reached.
        RateLimit = "rate_limit",
        /// It already carries the mark of a copy.
        LoopGuard = "loop_guard",
        /// It is too short or its headers make no sense.
        Malformed = "malformed",
        /// It is a segmentation giant and cannot be cut up.
        GsoUnsegmented = "gso_unsegmented",
        /// The kernel refused its form.
        WrongFormat = "wrong_format",
        /// The kernel or the peer refused it.
        Refused = "refused",
        /// It was in flight in a consumer that was killed.
        Killed = "killed",
        /// It was written to a file or stream.
        Written = "written",
        /// None of the above; zero in a healthy system.
        Other = "other",
        /// A further copy of it was made for a further interface; informational, each copy has a final outcome of its own.
        /// To be counted before that one, so that a consumer that is killed in between leaves nothing over.
        Copied = "copied",
        /// It is no IP packet, and the tunnel carries nothing else.
        NotIp = "not_ip",
        /// There is no route to the other end of the tunnel.
        NoRoute = "no_route",
        /// A route leads to the other end of the tunnel, but it, or a router on the way, is said to be out of reach.
        Unreachable = "unreachable",
    }
}

impl Outcome {
    /// Whether this ends a frame's way: all but [`Outcome::Truncated`] and [`Outcome::Copied`].
    ///
    /// Delivered + copied frames = sum of terminal outcomes + frames in flight.
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Truncated | Self::Copied)
    }
}
