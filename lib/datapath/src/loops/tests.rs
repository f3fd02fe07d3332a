use super::*;

const HERE: u32 = 7;

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        ..Link::default()
    }
}

fn edge(name: &str, ifindex: u32, inward: bool, outward: bool) -> Edge {
    let mut edge = Edge::source(name, ifindex, inward, outward);
    edge.place.namespace = HERE;
    edge
}

/// Interfaces eth1 to eth4, with the indexes 1 to 4.
fn graph() -> Graph {
    Graph {
        links: (1..=4).map(|at| link(at, &format!("eth{at}"))).collect(),
        namespace: HERE,
        ..Graph::default()
    }
}

impl Graph {
    fn with_source(mut self, ring: &str, edge: Edge) -> Graph {
        self.sources.push(self.tie(ring, "rxd a", edge));
        self
    }

    fn with_output(mut self, ring: &str, edge: Edge) -> Graph {
        self.outputs.push(self.tie(ring, "txd a", edge));
        self
    }

    fn sends(&self, ring: &str, edge: Edge) -> Option<String> {
        let found = self.loop_by_outputs("txd new", &[ring.to_owned()], &[edge]);
        found.map(|found| found.to_string())
    }

    fn takes(&self, ring: &str, edge: Edge) -> Option<String> {
        let found = self.loop_by_source(ring, "rxd new", edge);
        found.map(|found| found.to_string())
    }
}

fn out(name: &str) -> Edge {
    edge(name, 0, false, false)
}

fn both(name: &str) -> Edge {
    edge(name, 0, true, true)
}

fn inward(name: &str) -> Edge {
    edge(name, 0, true, false)
}

#[test]
fn an_interface_that_feeds_a_ring_is_no_output_of_it_in_either_order() {
    for source in [both("eth1"), inward("eth1")] {
        let graph = graph().with_source("d", source.clone());
        let found = graph.sends("d", out("eth1")).unwrap();
        assert!(found.starts_with("interface eth1 feeds ring d"), "{found}");
        assert!(
            found.contains("ring d -> eth1 -> ring d (sent by txd new)"),
            "{found}"
        );
        assert_eq!(graph.sends("e", out("eth1")), None);
        assert_eq!(graph.sends("d", out("eth2")), None);
    }
    let graph = graph().with_output("d", out("eth1"));
    assert!(graph.takes("d", both("eth1")).is_some());
    assert!(graph.takes("d", inward("eth1")).is_some());
    assert_eq!(graph.takes("d", both("eth2")), None);
    assert_eq!(graph.takes("e", both("eth1")), None);
}

#[test]
fn a_loop_through_two_rings_is_found_whichever_part_of_it_comes_last() {
    let parts: [(&str, bool, &str); 4] = [
        ("a", true, "eth1"),
        ("b", false, "eth1"),
        ("b", true, "eth2"),
        ("a", false, "eth2"),
    ];
    for last in 0..parts.len() {
        let others = parts.iter().enumerate().filter(|(at, _)| *at != last);
        let graph = others.fold(graph(), |graph, (_, (ring, sends, name))| match sends {
            true => graph.with_output(ring, out(name)),
            false => graph.with_source(ring, both(name)),
        });
        let (ring, sends, name) = parts[last];
        let found = match sends {
            true => graph.sends(ring, out(name)),
            false => graph.takes(ring, both(name)),
        };
        let found = found.unwrap();
        assert!(
            found.contains("-> eth1 -> ring b") && found.contains("-> eth2 -> ring a"),
            "{found}"
        );
    }
}

#[test]
fn two_interfaces_may_be_joined_by_two_rings_that_take_what_arrives() {
    let graph = graph()
        .with_source("a", inward("eth1"))
        .with_output("a", out("eth2"))
        .with_source("b", inward("eth2"));
    assert_eq!(graph.sends("b", out("eth1")), None);
}

#[test]
fn names_do_not_hide_an_interface() {
    let mut graph = graph();
    graph.links[0].altnames = vec!["tap".into()];
    let graph = graph.with_source("d", both("tap"));
    assert!(graph.sends("d", out("eth1")).is_some());
    // Renamed: the index stays.
    let mut graph = graph.with_source("e", edge("eth2", 2, true, true));
    graph.links[1].name = "wire".into();
    assert!(graph.sends("e", out("wire")).is_some());
    assert_eq!(graph.sends("e", out("eth2")), None);
}

#[test]
fn an_interface_that_is_not_there_goes_by_its_name() {
    let graph = graph().with_output("d", out("later"));
    assert!(graph.takes("d", both("later")).is_some());
    // It was index 9, which is gone, and its name is another one's by now.
    let graph = graph.with_source("e", edge("eth3", 9, true, true));
    assert!(graph.sends("e", out("eth3")).is_some());
}

#[test]
fn another_namespace_has_other_interfaces_of_the_same_number() {
    let mut elsewhere = edge("eth1", 1, true, true);
    elsewhere.place.namespace = HERE + 1;
    let graph = graph().with_source("d", elsewhere);
    assert_eq!(graph.sends("d", out("eth1")), None);
}

#[test]
fn what_somebody_has_allowed_is_no_loop() {
    let graph = graph()
        .with_source("d", both("eth1").allowed(true))
        .with_output("e", out("eth2").allowed(true));
    assert_eq!(graph.sends("d", out("eth1")), None);
    assert_eq!(graph.takes("e", both("eth2")), None);
    assert_eq!(graph.takes("e", both("eth2").allowed(true)), None);
}

#[test]
fn a_reader_that_changes_does_not_stand_in_its_own_way() {
    let graph = graph()
        .with_output("d", out("eth1"))
        .with_source("d", both("eth2"));
    let moved = graph.loop_by_outputs("txd a", &["e".to_owned()], &[out("eth2")]);
    assert_eq!(moved, None);
}

/// The kinds of interface through which a frame goes on: what is sent to the first comes to the second.
#[test]
fn frames_are_followed_through_the_interfaces_of_the_host() {
    let with = |change: &dyn Fn(&mut [Link])| {
        let mut graph = graph();
        change(&mut graph.links);
        graph
    };
    // A VLAN on eth2 leaves by that one.
    let vlan = with(&|links| {
        (links[0].kind, links[0].linked) = ("vlan".into(), 2);
    });
    assert!(
        vlan.with_source("d", both("eth2"))
            .sends("d", out("eth1"))
            .is_some()
    );
    // The other end of a veth gets it.
    let veth = || {
        with(&|links| {
            (links[0].kind, links[0].linked) = ("veth".into(), 2);
            (links[1].kind, links[1].linked) = ("veth".into(), 1);
        })
    };
    let graph = veth().with_source("d", inward("eth2"));
    assert!(graph.sends("d", out("eth1")).is_some());
    let graph = veth().with_source("d", edge("eth2", 0, false, true));
    assert_eq!(graph.sends("d", out("eth1")), None);
    // A bond's slave, and back from a bridge through another port.
    let bond = with(&|links| {
        links[0].kind = "bond".into();
        links[1].master = 1;
    });
    assert!(
        bond.with_source("d", both("eth2"))
            .sends("d", out("eth1"))
            .is_some()
    );
    let bridge = with(&|links| {
        (links[0].kind, links[0].linked) = ("veth".into(), 2);
        (links[1].kind, links[1].linked) = ("veth".into(), 1);
        links[2].kind = "bridge".into();
        (links[1].master, links[3].master) = (3, 3);
    });
    let graph = bridge.with_source("d", both("eth4"));
    assert!(graph.sends("d", out("eth1")).is_some());
    // The loopback interface.
    let lo = with(&|links| links[0].loopback = true);
    let graph = lo.with_source("d", inward("eth1"));
    assert!(graph.sends("d", out("eth1")).is_some());
}
