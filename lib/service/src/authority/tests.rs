use super::*;
use loona_hpack::Encoder;
use tokio::io::AsyncReadExt;

/// A connection that gives a few bytes at a time.
struct Slow<'a>(&'a [u8], usize);

impl AsyncRead for Slow<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.1.min(self.0.len()).min(buf.remaining());
        let (now, later) = self.0.split_at(count);
        buf.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

struct Through<'a>(Slow<'a>, AnyAuthority);

impl AsyncRead for Through<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Through(connection, filter) = &mut *self;
        filter.poll_read(connection, cx, buf)
    }
}

async fn through(bytes: &[u8], step: usize) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    Through(Slow(bytes, step), AnyAuthority::new())
        .read_to_end(&mut all)
        .await?;
    Ok(all)
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let header = [
        length[1], length[2], length[3], kind, flags, 0, 0, 0, stream,
    ];
    [&header, payload].concat()
}

type Header = (Vec<u8>, Vec<u8>);

fn headers(authority: &str, path: &str) -> Vec<Header> {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("te", "trailers"),
    ]
    .iter()
    .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
    .collect()
}

/// The header blocks in what h2 gets, each by a decoder that has no table; and the other frames as they are.
fn parse(mut bytes: &[u8]) -> (Vec<Vec<Header>>, Vec<Vec<u8>>) {
    let (mut blocks, mut others, mut block) = (Vec::new(), Vec::new(), Vec::new());
    bytes = &bytes[PREFACE..];
    while let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER>() {
        let (body, rest) = rest.split_at(payload(header));
        bytes = rest;
        if !is_of_headers(header) {
            others.push([header, body].concat());
            continue;
        }
        block.extend_from_slice(body);
        if header[4] & END_HEADERS != 0 {
            blocks.push(Decoder::new().decode(&block).expect("literals"));
            block.clear();
        }
    }
    (blocks, others)
}

#[tokio::test]
async fn authorities_that_are_no_host_are_replaced_and_nothing_else_is_touched() {
    let mut encoder = Encoder::new();
    let data = frame(0, 1, 1, &[7; 5000]);
    let mut sent = vec![b'p'; PREFACE];
    let mut expected = Vec::new();
    let long = format!("/{}", "x".repeat(40_000));
    for (authority, taken, path) in [
        ("localhost", "localhost", "/a"),
        ("%2Frun%2Ffluxcap%2Frxd.sock", "localhost", "/a"),
        // The encoder has it in its table now.
        ("%2Frun%2Ffluxcap%2Frxd.sock", "localhost", "/b"),
        ("/run/fluxcap/rxd.sock", "localhost", "/b"),
        ("run/fluxcap/rxd.sock", "localhost", "/b"),
        ("", "localhost", "/b"),
        ("a b", "localhost", "/b"),
        ("[::1]:50051", "[::1]:50051", "/b"),
        ("example.com", "example.com", long.as_str()),
    ] {
        let list = headers(authority, path);
        let block = encoder.encode(list.iter().map(|(name, value)| (&name[..], &value[..])));
        let (first, rest) = block.split_at(block.len() / 2);
        let mut flags = PADDED | PRIORITY;
        let padded = [&[3, 0, 0, 0, 0, 9], first, &[0; 3]].concat();
        if rest.len() < MAX_FRAME {
            sent.extend(frame(HEADERS, flags, 1, &padded));
            sent.extend(frame(CONTINUATION, END_HEADERS, 1, rest));
        } else {
            flags |= END_STREAM;
            sent.extend(frame(
                HEADERS,
                flags,
                1,
                &[&[0, 0, 0, 0, 0, 9], &first[..9000]].concat(),
            ));
            for part in [&first[9000..], rest].concat().chunks(MAX_FRAME) {
                sent.extend(frame(CONTINUATION, 0, 1, part));
            }
            sent.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
        }
        sent.extend_from_slice(&data);
        expected.push(headers(taken, path));
    }
    for step in [1, 13, 100_000] {
        let all = through(&sent, step).await.expect("all");
        let (blocks, others) = parse(&all);
        assert_eq!(blocks, expected, "{step} bytes at a time");
        assert!(others.iter().all(|it| *it == data) && others.len() == expected.len());
    }
}

#[tokio::test]
async fn what_is_no_http2_ends_the_connection_and_takes_no_memory() {
    let preface = vec![b'p'; PREFACE];
    let endless = frame(CONTINUATION, 0, 1, &[0; MAX_FRAME]).repeat(8);
    // One byte each stands for an entry of 4 kB in the table.
    let entry = [&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e][..], &[b'v'; 4000]].concat();
    let bomb = [entry, vec![0xbe; 10_000]].concat();
    for (what, frames) in [
        (
            "an index out of bounds",
            frame(HEADERS, END_HEADERS, 1, &[0xff, 0x7f]),
        ),
        (
            "padding longer than the frame",
            frame(HEADERS, END_HEADERS | PADDED, 1, &[9, 0]),
        ),
        (
            "a continuation of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &[]),
        ),
        (
            "another stream between",
            [frame(HEADERS, 0, 1, &[]), frame(CONTINUATION, 4, 3, &[])].concat(),
        ),
        (
            "data between",
            [frame(HEADERS, 0, 1, &[]), frame(0, 0, 1, &[])].concat(),
        ),
        (
            "headers without an end",
            [frame(HEADERS, 0, 1, &[]), endless].concat(),
        ),
        ("a bomb", frame(HEADERS, END_HEADERS, 1, &bomb)),
    ] {
        let sent = [preface.clone(), frames].concat();
        assert!(through(&sent, 999).await.is_err(), "{what}");
    }
    // Cut anywhere: an end, not an error, and never a wait.
    let list = headers("/", "/");
    let block = Encoder::new().encode(list.iter().map(|(name, value)| (&name[..], &value[..])));
    let whole = [preface, frame(HEADERS, END_HEADERS, 1, &block)].concat();
    for end in 0..whole.len() {
        through(&whole[..end], 7).await.expect("cut");
    }
}
