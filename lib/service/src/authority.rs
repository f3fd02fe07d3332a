//! Any `:authority` on a Unix socket.
//!
//! A client of a Unix socket has no host to name, and stock clients name what they like: `localhost`, nothing, the path, or
//! the path with percent signs (Python, Java). h2 resets a stream whose authority is no host, before anybody could decide
//! otherwise, so those are replaced on the way in. The header compression of HTTP/2 has a state that both ends share,
//! which is why header blocks are decoded whole here and passed on as plain literals: h2's table stays empty, and there
//! is no state that could come apart. Everything but headers goes through as it is.

use loona_hpack::Decoder;
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, ReadBuf};
use tonic::codegen::http::uri::Authority;

/// What every client sends first (RFC 9113, section 3.4).
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
/// Longest payload of a frame; h2 announces no other.
const MAX_FRAME: usize = 16 << 10;
/// Longest header block, before and after it is decoded. What is longer than the server's limit is refused by h2.
const MAX_BLOCK: usize = 64 << 10;
/// Bytes of its table that a client may use; h2 announces no other.
const TABLE_SIZE: usize = 4096;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// What comes from a client, with authorities that h2 takes.
pub(crate) struct AnyAuthority {
    decoder: Decoder<'static>,
    /// Bytes that go through as they are.
    pass: usize,
    /// The frame that is being read: its header, and its payload when that is one of headers.
    frame: Vec<u8>,
    /// A header block that goes on in further frames, with the stream's number and the flags of its first frame.
    block: Option<Block>,
    /// What is to be given to h2, from `given` on.
    ready: Vec<u8>,
    given: usize,
}

struct Block {
    stream: [u8; 4],
    flags: u8,
    bytes: Vec<u8>,
}

impl fmt::Debug for AnyAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyAuthority").finish_non_exhaustive()
    }
}

impl AnyAuthority {
    /// For a connection that begins.
    pub(crate) fn new() -> AnyAuthority {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(TABLE_SIZE);
        AnyAuthority {
            decoder,
            pass: PREFACE,
            frame: Vec::new(),
            block: None,
            ready: Vec::new(),
            given: 0,
        }
    }

    /// As `poll_read` of the connection. An error ends it.
    pub(crate) fn poll_read(
        &mut self,
        connection: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.given < self.ready.len() {
                let rest = &self.ready[self.given..];
                let count = rest.len().min(buf.remaining());
                buf.put_slice(&rest[..count]);
                self.given += count;
                return Poll::Ready(Ok(()));
            }
            if self.pass > 0 {
                let count = ready!(read(connection, cx, buf, self.pass))?;
                self.pass -= count;
                return Poll::Ready(Ok(()));
            }
            let mut some = [0; 1024];
            let mut some = ReadBuf::new(&mut some);
            let missing = self.missing();
            if ready!(read(connection, cx, &mut some, missing))? == 0 {
                return Poll::Ready(Ok(()));
            }
            self.frame.extend_from_slice(some.filled());
            if self.missing() == 0 {
                self.take_frame()?;
            }
        }
    }

    /// Bytes that are missing in `frame`; none when it is to be looked at.
    fn missing(&self) -> usize {
        match self.frame.first_chunk::<FRAME_HEADER>() {
            None => FRAME_HEADER - self.frame.len(),
            Some(header) if is_of_headers(header) => {
                (FRAME_HEADER + payload(header)).saturating_sub(self.frame.len())
            }
            Some(_) => 0,
        }
    }

    fn take_frame(&mut self) -> io::Result<()> {
        let frame = std::mem::take(&mut self.frame);
        let Some((header, payload_bytes)) = frame.split_first_chunk::<FRAME_HEADER>() else {
            return Ok(());
        };
        let &[_, _, _, kind, flags, stream @ ..] = header;
        let block = match (self.block.take(), is_of_headers(header)) {
            (None, true) if kind == HEADERS => Block {
                stream,
                flags,
                bytes: without_padding(flags, payload_bytes)?.to_vec(),
            },
            (Some(mut block), true) if kind == CONTINUATION && stream == block.stream => {
                block.bytes.extend_from_slice(payload_bytes);
                block
            }
            (None, false) => {
                self.pass = payload(header);
                self.give(header.to_vec());
                return Ok(());
            }
            _ => return Err(refused("frames of headers in the wrong place")),
        };
        if block.bytes.len() > MAX_BLOCK {
            return Err(refused("a header block that is too long"));
        }
        match flags & END_HEADERS {
            0 => self.block = Some(block),
            _ => {
                let literals = self.decode(&block.bytes)?;
                self.give(frames(&block, &literals));
            }
        }
        Ok(())
    }

    fn give(&mut self, bytes: Vec<u8>) {
        (self.ready, self.given) = (bytes, 0);
    }

    /// The header block as literals, which need no table.
    fn decode(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let mut literals = Vec::new();
        let decoded = self.decoder.decode_with_cb(block, |name, value| {
            // A short block may stand for long headers; what is too long is refused below.
            if literals.len() > MAX_BLOCK {
                return;
            }
            // Literal without indexing, with a name of its own (RFC 7541, section 6.2.2).
            literals.push(0);
            put_string(&mut literals, &name);
            match *name == *b":authority" && Authority::try_from(&*value).is_err() {
                true => put_string(&mut literals, b"localhost"),
                false => put_string(&mut literals, &value),
            }
        });
        match decoded {
            Ok(()) if literals.len() <= MAX_BLOCK => Ok(literals),
            Ok(()) => Err(refused("headers that are too long")),
            Err(error) => Err(refused(&error.to_string())),
        }
    }
}

/// Reads at most `limit` bytes; how many.
fn read(
    connection: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
    limit: usize,
) -> Poll<io::Result<usize>> {
    let mut part = ReadBuf::new(buf.initialize_unfilled_to(limit.min(buf.remaining())));
    ready!(Pin::new(connection).poll_read(cx, &mut part))?;
    let count = part.filled().len();
    buf.advance(count);
    Poll::Ready(Ok(count))
}

fn payload(header: &[u8; FRAME_HEADER]) -> usize {
    let &[a, b, c, ..] = header;
    (usize::from(a) << 16) | (usize::from(b) << 8) | usize::from(c)
}

/// Whether the payload is to be looked at. A frame that is too long is none of that: h2 refuses it.
fn is_of_headers(header: &[u8; FRAME_HEADER]) -> bool {
    [HEADERS, CONTINUATION].contains(&header[3]) && payload(header) <= MAX_FRAME
}

/// The header block in the payload of a HEADERS frame.
fn without_padding(flags: u8, payload: &[u8]) -> io::Result<&[u8]> {
    let wrong = || refused("a frame of headers that is too short");
    let (padding, rest) = match flags & PADDED {
        0 => (0, payload),
        _ => {
            let (&padding, rest) = payload.split_first().ok_or_else(wrong)?;
            (usize::from(padding), rest)
        }
    };
    let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
    let end = rest.len().checked_sub(padding).ok_or_else(wrong)?;
    rest.get(priority..end).ok_or_else(wrong)
}

fn frames(block: &Block, literals: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(literals.len() + 8 * FRAME_HEADER);
    let mut rest = literals;
    let mut kind = HEADERS;
    loop {
        let (part, more) = rest.split_at(rest.len().min(MAX_FRAME));
        let first = if kind == HEADERS {
            block.flags & END_STREAM
        } else {
            0
        };
        let last = if more.is_empty() { END_HEADERS } else { 0 };
        // At most MAX_FRAME, which needs the lower 15 bits.
        let length = u32::try_from(part.len()).unwrap_or(0).to_be_bytes();
        bytes.extend_from_slice(&length[1..]);
        bytes.extend_from_slice(&[kind, first | last]);
        bytes.extend_from_slice(&block.stream);
        bytes.extend_from_slice(part);
        if more.is_empty() {
            return bytes;
        }
        (rest, kind) = (more, CONTINUATION);
    }
}

/// A string without Huffman coding (RFC 7541, section 5.2).
fn put_string(to: &mut Vec<u8>, text: &[u8]) {
    const PREFIX: usize = 0x7f;
    let mut rest = match text.len().checked_sub(PREFIX) {
        None => {
            to.push(low_bits(text.len()));
            return to.extend_from_slice(text);
        }
        Some(rest) => rest,
    };
    to.push(low_bits(PREFIX));
    while rest > PREFIX {
        to.push(0x80 | low_bits(rest));
        rest >>= 7;
    }
    to.push(low_bits(rest));
    to.extend_from_slice(text);
}

fn low_bits(number: usize) -> u8 {
    u8::try_from(number & 0x7f).unwrap_or(0)
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("HTTP/2: {what}"))
}

#[cfg(test)]
mod tests;
