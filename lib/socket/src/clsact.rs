//! Programs at interfaces as filters of traffic control: the clsact qdisc and cls_bpf with direct action (rtnetlink, tc-bpf(8)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_packet_core::{NlaBuffer, NlasIterator};

use crate::Error;
use crate::netlink::{Message, Requests, append_attribute, request, word};

/// Where at an interface filters are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcHook {
    /// What arrives.
    Ingress,
    /// What is sent.
    Egress,
}

impl TcHook {
    /// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and its like (`linux/pkt_sched.h`).
    fn parent(self) -> u32 {
        match self {
            TcHook::Ingress => 0xffff_fff2,
            TcHook::Egress => 0xffff_fff3,
        }
    }
}

/// A filter, of the kind "bpf" as a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcFilter {
    /// Its place among others: the lower the earlier.
    pub priority: u16,
    /// Its number at this priority.
    pub handle: u32,
    /// "bpf", "flower", "matchall" ...
    pub kind: String,
    /// The name that it was given.
    pub name: String,
    /// Identifier of the program; 0 for filters of other kinds.
    pub program_id: u32,
}

/// Requests to traffic control, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct TrafficControl(Requests);

impl TrafficControl {
    /// Opens a socket for requests.
    ///
    /// # Errors
    /// [`Error::System`] if the system refuses a netlink socket.
    pub fn open() -> Result<TrafficControl, Error> {
        Requests::open()
            .map(TrafficControl)
            .map_err(|e| Error::system("speak to traffic control", e))
    }

    /// Gives an interface the clsact qdisc. False when it has that, or the ingress qdisc, already.
    ///
    /// # Errors
    /// [`Error::Permission`], [`Error::NoInterface`], [`Error::Interface`].
    pub fn add_clsact(&mut self, ifindex: u32) -> Result<bool, Error> {
        let mut body = message(ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0);
        append_attribute(&mut body, libc::TCA_KIND, b"clsact\0");
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.tell(libc::RTM_NEWQDISC, flags, &body)? {
            0 => Ok(true),
            libc::EEXIST => Ok(false),
            code => Err(failed("add a clsact qdisc", ifindex, code)),
        }
    }

    /// Takes the clsact qdisc off an interface, with all filters there. That there is none is fine.
    ///
    /// # Errors
    /// As [`TrafficControl::add_clsact`].
    pub fn remove_clsact(&mut self, ifindex: u32) -> Result<(), Error> {
        let body = message(ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0);
        match self.tell(libc::RTM_DELQDISC, 0, &body)? {
            0 | libc::ENOENT | libc::EINVAL | libc::ENODEV => Ok(()),
            code => Err(failed("remove a clsact qdisc", ifindex, code)),
        }
    }

    /// Adds a filter, or replaces the program of the one with this priority and handle: each frame meets the old one or the new one.
    ///
    /// # Errors
    /// As [`TrafficControl::add_clsact`]; EINVAL where there is no qdisc for it.
    pub fn set_filter(
        &mut self,
        ifindex: u32,
        hook: TcHook,
        filter: &TcFilter,
        program: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let mut body = filter_message(ifindex, hook, filter);
        let mut options = Vec::new();
        let fd = u32::try_from(program.as_raw_fd()).unwrap_or(u32::MAX);
        append_attribute(&mut options, TCA_BPF_FD, &fd.to_ne_bytes());
        let name = [filter.name.as_bytes(), b"\0"].concat();
        append_attribute(&mut options, TCA_BPF_NAME, &name);
        append_attribute(&mut options, TCA_BPF_FLAGS, &ACT_DIRECT.to_ne_bytes());
        append_attribute(&mut body, libc::TCA_OPTIONS | NESTED, &options);
        match self.tell(RTM_NEWTFILTER, NLM_F_CREATE, &body)? {
            0 => Ok(()),
            code => Err(failed(
                "attach a BPF program to an interface",
                ifindex,
                code,
            )),
        }
    }

    /// Removes the filter with this priority and handle. That there is none is fine.
    ///
    /// # Errors
    /// As [`TrafficControl::add_clsact`].
    pub fn remove_filter(
        &mut self,
        ifindex: u32,
        hook: TcHook,
        filter: &TcFilter,
    ) -> Result<(), Error> {
        let body = filter_message(ifindex, hook, filter);
        match self.tell(RTM_DELTFILTER, 0, &body)? {
            0 | libc::ENOENT | libc::EINVAL | libc::ENODEV => Ok(()),
            code => Err(failed(
                "detach a BPF program from an interface",
                ifindex,
                code,
            )),
        }
    }

    /// All filters at a hook of an interface, of any kind; none where there is no qdisc for them.
    ///
    /// # Errors
    /// [`Error::System`] or [`Error::Netlink`] when the kernel does not answer as it should.
    pub fn filters(&mut self, ifindex: u32, hook: TcHook) -> Result<Vec<TcFilter>, Error> {
        const LIST: &str = "list filters of traffic control";
        let body = message(ifindex, 0, hook.parent(), 0);
        let ask = request(RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, &body);
        let mut filters = Vec::new();
        self.0.ask(LIST, ask, |message, _| match message {
            Message::NewFilter(payload) => {
                filters.extend(parse(payload));
                Ok(false)
            }
            Message::Done | Message::Error(0 | libc::EINVAL | libc::ENOENT | libc::ENODEV) => {
                Ok(true)
            }
            Message::Error(code) => Err(Error::system(LIST, io::Error::from_raw_os_error(*code))),
            _ => Ok(false),
        })?;
        Ok(filters)
    }

    /// Sends a request that is answered by a number: 0, or an errno.
    fn tell(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<i32, Error> {
        let message = request(kind, flags | NLM_F_REQUEST | NLM_F_ACK, body);
        let mut answer = 0;
        self.0
            .ask("speak to traffic control", message, |message, _| {
                if let Message::Error(code) = message {
                    answer = *code;
                }
                Ok(matches!(message, Message::Error(_)))
            })?;
        Ok(answer)
    }
}

/// `struct tcmsg`: family, padding (3), interface index, handle, parent, info.
fn message(ifindex: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for field in [ifindex, handle, parent, info] {
        body.extend(field.to_ne_bytes());
    }
    body
}

const MESSAGE_LEN: usize = 20;

fn filter_message(ifindex: u32, hook: TcHook, filter: &TcFilter) -> Vec<u8> {
    let every_protocol = u32::from(ETH_P_ALL.to_be());
    let info = u32::from(filter.priority) << 16 | every_protocol;
    let mut body = message(ifindex, filter.handle, hook.parent(), info);
    append_attribute(&mut body, libc::TCA_KIND, b"bpf\0");
    body
}

/// Reads the payload of RTM_NEWTFILTER. `None` for the entry that stands for all filters of a priority.
fn parse(payload: &[u8]) -> Option<TcFilter> {
    let (header, attributes) = payload.split_at_checked(MESSAGE_LEN)?;
    let field = |at: usize| header.get(at..).and_then(word);
    let mut filter = TcFilter {
        handle: field(8)?,
        priority: u16::try_from(field(16)? >> 16).ok()?,
        ..TcFilter::default()
    };
    for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
        if attribute.kind() == libc::TCA_KIND {
            let kind = attribute.value().split(|byte| *byte == 0).next();
            filter.kind = String::from_utf8_lossy(kind.unwrap_or_default()).into_owned();
        }
        // Whether the kernel marks it as nested depends on its version.
        if attribute.kind() & !NESTED == libc::TCA_OPTIONS {
            let options = NlasIterator::new(attribute.value()).map_while(Result::ok);
            options.for_each(|option| filter.take(&option));
        }
    }
    (filter.handle != 0).then_some(filter)
}

impl TcFilter {
    fn take(&mut self, option: &NlaBuffer<&[u8]>) {
        let value = option.value();
        match option.kind() {
            TCA_BPF_NAME => {
                let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
                self.name = String::from_utf8_lossy(&value[..end]).into_owned();
            }
            TCA_BPF_ID => self.program_id = word(value).unwrap_or(0),
            _ => {}
        }
    }
}

fn failed(operation: &'static str, ifindex: u32, code: i32) -> Error {
    let source = io::Error::from_raw_os_error(code);
    match code {
        libc::EPERM | libc::EACCES => Error::Permission {
            operation,
            capability: "CAP_NET_ADMIN",
            source,
        },
        libc::ENODEV => Error::NoInterface { ifindex },
        _ => Error::Interface {
            operation,
            ifindex,
            source,
        },
    }
}

/// `TC_H_CLSACT`, and the handle that the qdisc has.
const CLSACT_PARENT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const RTM_NEWTFILTER: u16 = libc::RTM_NEWTFILTER;
const RTM_DELTFILTER: u16 = libc::RTM_DELTFILTER;
const RTM_GETTFILTER: u16 = libc::RTM_GETTFILTER;
/// Filters for every protocol.
const ETH_P_ALL: u16 = 3;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `TCA_BPF_*` (`linux/pkt_cls.h`).
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// `TCA_BPF_FLAG_ACT_DIRECT`: what the program returns is the verdict.
const ACT_DIRECT: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(handle: u32, options_kind: u16) -> Vec<u8> {
        let mut body = message(7, handle, TcHook::Egress.parent(), 41 << 16 | 0x300);
        append_attribute(&mut body, libc::TCA_KIND, b"bpf\0");
        let mut options = Vec::new();
        append_attribute(&mut options, TCA_BPF_NAME, b"mirror web\0");
        append_attribute(&mut options, TCA_BPF_ID, &77_u32.to_ne_bytes());
        append_attribute(&mut body, options_kind, &options);
        body
    }

    #[test]
    fn a_filter_is_read_with_and_without_the_mark_of_nested_attributes() {
        for kind in [libc::TCA_OPTIONS, libc::TCA_OPTIONS | NESTED] {
            let filter = parse(&answer(9, kind)).unwrap();
            assert_eq!((filter.priority, filter.handle), (41, 9));
            assert_eq!(filter.kind, "bpf");
            assert_eq!(
                (filter.name.as_str(), filter.program_id),
                ("mirror web", 77)
            );
        }
    }

    #[test]
    fn the_entry_of_a_priority_and_messages_that_are_cut_are_no_filters() {
        assert_eq!(parse(&answer(0, libc::TCA_OPTIONS)), None);
        let whole = answer(9, libc::TCA_OPTIONS);
        for length in 0..MESSAGE_LEN {
            assert_eq!(parse(&whole[..length]), None);
        }
        for length in MESSAGE_LEN..whole.len() {
            assert!(parse(&whole[..length]).is_some());
        }
    }
}
