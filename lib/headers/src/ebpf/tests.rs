use super::*;
use crate::{Error, Filter};

const CALLS: TailCalls = TailCalls {
    programs: 7,
    matched: 1,
    refused: 2,
};

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// Instructions that load a map: one for each end that is there.
fn ends(program: &[[u8; 8]]) -> usize {
    let map = |i: &&[u8; 8]| i[0] == 0x18 && i[4..] == 7i32.to_ne_bytes();
    program.iter().filter(map).count()
}

#[test]
fn only_ends_that_are_reached_are_there() {
    let translated = |expression| {
        let filter = Filter::compile(expression, FilterVlan::Any).unwrap();
        filter.classifier(&CALLS).unwrap()
    };
    assert_eq!(ends(&translated("")), 1);
    assert_eq!(ends(&translated("tcp port 80")), 2);
}

#[test]
fn what_is_never_reached_is_left_out() {
    let accept = instruction(code::RET, 0, 0, 1);
    let load = instruction(code::LD | code::W | code::ABS, 0, 0, 30);
    let skips = [instruction(code::JMP | code::JA, 0, 0, 1), load, accept];
    let short = [accept];
    let length = |program: &[Instruction]| {
        let translated = translate(program, FilterVlan::Any, &CALLS).unwrap();
        translated.len()
    };
    assert_eq!(length(&skips), length(&short) + 1);
    let by_zero = instruction(code::ALU | code::DIV, 0, 0, 0);
    let translated = translate(&[by_zero, accept], FilterVlan::Any, &CALLS).unwrap();
    assert_eq!(ends(&translated), 1);
}

#[test]
fn what_is_no_program_is_refused_with_a_reason() {
    let refused = |program: &[Instruction]| translate(program, FilterVlan::Exact, &CALLS);
    let accept = instruction(code::RET, 0, 0, 1);
    assert!(refused(&[]).is_err());
    assert!(refused(&[instruction(code::JMP | code::JA, 0, 0, 5), accept]).is_err());
    assert!(refused(&[instruction(code::JMP | code::JA, 0, 0, u32::MAX), accept]).is_err());
    assert!(refused(&[instruction(code::ST, 0, 0, 16), accept]).is_err());
    assert!(refused(&[instruction(code::LD | 0xc0, 0, 0, 0), accept]).is_err());
    assert!(refused(&[instruction(code::ALU | 0xb0, 0, 0, 1), accept]).is_err());
    assert!(refused(&[instruction(code::JMP | 0x50, 0, 0, 1), accept]).is_err());
    let mut long = vec![instruction(code::LD | code::W | code::IND, 0, 0, 0); 4000];
    long.push(accept);
    assert!(refused(&long).unwrap_err().contains("too long"));
    let hosts: Vec<String> = (0..280)
        .map(|n| format!("10.0.{}.{}", n / 200, n % 200))
        .collect();
    let long = Filter::compile(&format!("host ({})", hosts.join(" or ")), FilterVlan::Any).unwrap();
    match long.classifier(&CALLS) {
        Ok(program) => assert!(program.len() < 32_768),
        Err(Error::NotForKernel { reason, .. }) => assert!(reason.contains("too long")),
        Err(error) => panic!("{error}"),
    }
}
