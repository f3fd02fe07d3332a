//! Questions to the families of generic netlink.

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NlasIterator};

use crate::Error;
use crate::netlink::{self, Message, Requests};

/// `struct genlmsghdr`: command (1), version (1), reserved (2).
const HEADER_LEN: usize = 4;
/// GENL_ID_CTRL, the family that knows the others.
const CONTROL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// A family, and a socket to ask it.
#[derive(Debug)]
pub(crate) struct Family {
    requests: Requests,
    number: u16,
    /// What is said in errors.
    operation: &'static str,
}

impl Family {
    /// The family of this name; `None` when this kernel has none.
    pub(crate) fn open(operation: &'static str, name: &str) -> Result<Option<Family>, Error> {
        let requests = Requests::open_generic().map_err(|e| Error::system(operation, e))?;
        let mut control = Family {
            requests,
            number: CONTROL,
            operation,
        };
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        let mut attributes = Vec::new();
        netlink::append_attribute(&mut attributes, CTRL_ATTR_FAMILY_NAME, &text);
        let mut number = None;
        let asked = control.ask(CTRL_CMD_GETFAMILY, &attributes, |kind, value| {
            if kind == CTRL_ATTR_FAMILY_ID {
                number = value.try_into().ok().map(u16::from_ne_bytes);
            }
        });
        match asked {
            Ok(()) => {}
            Err(Error::System { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        Ok(number.map(|number| Family { number, ..control }))
    }

    /// Asks, and hands over the attributes of the answer.
    pub(crate) fn ask(
        &mut self,
        command: u8,
        attributes: &[u8],
        mut take: impl FnMut(u16, &[u8]),
    ) -> Result<(), Error> {
        self.exchange(command, attributes, NLM_F_REQUEST, |message| {
            let attributes = message.get(HEADER_LEN..).unwrap_or_default();
            for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
                take(attribute.kind(), attribute.value());
            }
            true
        })
    }

    /// Has something changed, and waits until that is confirmed.
    pub(crate) fn change(&mut self, command: u8, attributes: &[u8]) -> Result<(), Error> {
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        self.exchange(command, attributes, flags, |_| false)
    }

    /// `done` says whether a message of the family is the answer; a confirmation always is.
    fn exchange(
        &mut self,
        command: u8,
        attributes: &[u8],
        flags: u16,
        mut done: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Error> {
        let mut body = vec![command, 1, 0, 0];
        body.extend(attributes);
        let operation = self.operation;
        let request = netlink::request(self.number, flags, &body);
        self.requests
            .ask(operation, request, |message, _| match message {
                Message::Generic(payload) => Ok(done(payload)),
                Message::Error(0) | Message::Done => Ok(true),
                Message::Error(code) => {
                    let source = std::io::Error::from_raw_os_error(*code);
                    Err(match *code {
                        libc::EPERM | libc::EACCES => Error::Permission {
                            operation,
                            capability: "CAP_NET_ADMIN",
                            source,
                        },
                        _ => Error::system(operation, source),
                    })
                }
                _ => Ok(false),
            })
    }
}
