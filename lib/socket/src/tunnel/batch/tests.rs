use super::*;
use proptest::prelude::*;

fn note(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
    let mut bytes = (CMSG_HEADER + data.len()).to_ne_bytes().to_vec();
    bytes.extend(level.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(WORD), 0);
    bytes
}

fn time(seconds: i64, nanoseconds: i64) -> Vec<u8> {
    let data = [seconds.to_ne_bytes(), nanoseconds.to_ne_bytes()].concat();
    note(libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, &data)
}

fn segment(bytes: i32) -> Vec<u8> {
    note(libc::SOL_UDP, UDP_GRO, &bytes.to_ne_bytes())
}

fn datagram(bytes: &[u8]) -> Datagram<'_> {
    Datagram {
        source: IpAddr::from([192, 0, 2, 1]),
        source_port: 5,
        protocol: UDP,
        bytes,
        truncated: false,
        timestamp_ns: 7,
    }
}

/// The lengths that a message is cut into.
fn cut(length: usize, segment: Option<usize>) -> Vec<usize> {
    let bytes: Vec<u8> = (0..length).map(|i| i.to_le_bytes()[0]).collect();
    let whole = datagram(&bytes);
    let mut rest = Some(Joined { whole, segment });
    let (mut lengths, mut joined) = (Vec::new(), Vec::<u8>::new());
    while let Some(message) = rest {
        let (first, left) = message.split();
        let same = Datagram {
            bytes: first.bytes,
            ..whole
        };
        assert_eq!(first, same);
        joined.extend(first.bytes);
        lengths.push(first.bytes.len());
        rest = left;
    }
    assert_eq!(joined, bytes);
    lengths
}

#[test]
fn time_and_segment_size_are_found_in_any_order() {
    let expected = Notes {
        timestamp_ns: 1_000_000_007,
        segment: Some(1400),
    };
    let strange = note(libc::SOL_IP, 1, &[1, 2, 3]);
    let notes = [time(1, 7), strange.clone(), segment(1400)].concat();
    assert!(notes.len() <= CONTROL);
    assert_eq!(Notes::parse(&notes), expected);
    assert_eq!(
        Notes::parse(&[segment(1400), strange, time(1, 7)].concat()),
        expected
    );
    assert_eq!(Notes::parse(&[]), Notes::default());
}

#[test]
fn senseless_times_and_sizes_are_none() {
    let none = Notes::default();
    assert_eq!(Notes::parse(&time(-1, 0)), none);
    assert_eq!(Notes::parse(&time(i64::MAX, 0)), none);
    assert_eq!(Notes::parse(&segment(0)), none);
    assert_eq!(Notes::parse(&segment(-5)), none);
    let mut long = segment(9);
    long[..WORD].copy_from_slice(&usize::MAX.to_ne_bytes());
    assert_eq!(Notes::parse(&long), none);
    long[..WORD].copy_from_slice(&0_usize.to_ne_bytes());
    assert_eq!(Notes::parse(&long), none);
}

#[test]
fn message_is_cut_into_segments_of_which_the_last_may_be_shorter() {
    assert_eq!(cut(100, None), [100]);
    assert_eq!(cut(0, None), [0]);
    assert_eq!(cut(100, Some(40)), [40, 40, 20]);
    assert_eq!(cut(80, Some(40)), [40, 40]);
    assert_eq!(cut(40, Some(40)), [40]);
    assert_eq!(cut(39, Some(40)), [39]);
    assert_eq!(cut(0, Some(40)), [0]);
}

#[test]
fn what_is_behind_an_ipv4_header_begins_behind_its_options() {
    let mut packet = vec![0x45; 20];
    packet.extend([1, 2, 3]);
    assert_eq!(behind_ipv4(&packet), [1, 2, 3]);
    packet[0] = 0x46;
    assert_eq!(behind_ipv4(&packet), []);
    packet.extend([4, 5]);
    assert_eq!(behind_ipv4(&packet), [5]);
    packet[0] = 0x41;
    assert_eq!(behind_ipv4(&packet), [1, 2, 3, 4, 5]);
    assert_eq!(behind_ipv4(&[]), []);
}

proptest! {
    #[test]
    fn any_control_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..CONTROL)) {
        Notes::parse(&bytes);
    }

    #[test]
    fn any_cut_keeps_all_bytes(length in 0_usize..3000, segment in 1_usize..4000) {
        cut(length, Some(segment));
    }
}
