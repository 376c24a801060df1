use std::net::IpAddr;

use proptest::prelude::*;

use super::index::{Index, matches};
use super::*;

fn rule_name(tier: Tier, policy: &str, rule: u32) -> Arc<RuleName> {
    RuleName::new(PolicyName::new(tier, policy), Direction::Ingress, rule)
}

fn networks() -> impl Strategy<Value = IpNetwork> {
    let v4 = (any::<[u8; 2]>(), 14_u8..=32)
        .prop_map(|([a, b], len)| IpNetwork::new(IpAddr::from([10, 0, a & 3, b]), len).unwrap());
    let v6 = (any::<[u8; 2]>(), 110_u8..=128).prop_map(|([a, b], len)| {
        let low = u16::from_be_bytes([a & 3, b]);
        IpNetwork::new(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, low]), len).unwrap()
    });
    let whole = prop::sample::select(&["0.0.0.0/0", "::/0", "255.255.255.255/32"][..]);
    prop_oneof![4 => v4, 2 => v6, 1 => whole.prop_map(|text| text.parse().unwrap())]
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        8 => networks().prop_map(|network| network.ip()),
        1 => prop::sample::select(&["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"][..])
            .prop_map(|text| text.parse().unwrap()),
    ]
}

fn protocols() -> impl Strategy<Value = Protocol> {
    prop::sample::select(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp][..])
}

fn ports() -> impl Strategy<Value = u16> {
    prop_oneof![0_u16..20, 65_520_u16..=65_535]
}

fn peers() -> impl Strategy<Value = Peers> {
    let blocks = (networks(), prop::collection::vec(networks(), 0..4))
        .prop_map(|(cidr, except)| Block { cidr, except });
    let some = (
        prop::collection::vec((0_u32..100).prop_map(SelectorIx), 0..4),
        prop::collection::vec(blocks, 0..3),
    );
    prop_oneof![
        1 => Just(Peers::Everybody),
        6 => some.prop_map(|(selectors, blocks)| Peers::Some { selectors, blocks }),
    ]
}

fn rules(tier: Tier) -> impl Strategy<Value = Vec<Rule>> {
    let matches = (protocols(), ports(), ports())
        .prop_map(|(protocol, from, to)| PortMatch { protocol, ports: from..=to });
    let action = prop::sample::select(&[Action::Accept, Action::Deny, Action::Pass][..]);
    let rule = (action, peers(), prop::collection::vec(matches, 0..4));
    prop::collection::vec(rule, 0..12).prop_map(move |rules| {
        let rule = |(ix, (action, peers, ports))| {
            let action = if tier == Tier::Namespace { Action::Accept } else { action };
            Rule { name: rule_name(tier, "p", ix), action, peers, ports }
        };
        (0..).zip(rules).map(rule).collect()
    })
}

fn traffic() -> impl Strategy<Value = Traffic> {
    prop_oneof![
        1 => Just(Traffic::Portless),
        5 => (protocols(), ports()).prop_map(|(protocol, port)| Traffic::Port { protocol, port }),
    ]
}

fn selectors() -> impl Strategy<Value = BitSet> {
    prop::collection::vec((0_u32..100).prop_map(SelectorIx), 0..20)
        .prop_map(|all| all.into_iter().collect())
}

proptest! {
    #[test]
    fn the_index_finds_what_looking_at_every_rule_finds(
        rules in rules(Tier::Admin),
        probes in prop::collection::vec((traffic(), addresses(), selectors()), 40),
        room in prop_oneof![Just(0_usize), Just(10), Just(1 << 18)],
    ) {
        let index = Index::with_room(&rules, room);
        for (traffic, address, selectors) in probes {
            let first = rules.iter().position(|rule| matches(rule, traffic, address, &selectors));
            let found = index.first(&rules, traffic, address, &selectors);
            prop_assert_eq!(found.map(|ix| ix as usize), first, "{:?} {} {:?}", traffic, address, selectors);
        }
    }

    #[test]
    fn tiers_decide_one_after_the_other(
        admin in rules(Tier::Admin),
        namespace in prop::option::of(rules(Tier::Namespace)),
        baseline in rules(Tier::Baseline),
        probes in prop::collection::vec((traffic(), addresses(), selectors()), 20),
    ) {
        let isolation = namespace.clone().map(|rules| Isolation { policies: vec![], rules });
        let set = RuleSet::new(RuleSetSpec {
            admin: admin.clone(),
            namespace: isolation,
            baseline: baseline.clone(),
        });
        for (traffic, address, selectors) in probes {
            let first = |rules: &[Rule]| {
                rules.iter().find(|rule| matches(rule, traffic, address, &selectors)).cloned()
            };
            let is_denied = match (first(&admin).map(|rule| rule.action), &namespace) {
                (Some(Action::Accept), _) => false,
                (Some(Action::Deny), _) => true,
                (Some(Action::Pass) | None, Some(rules)) => first(rules).is_none(),
                (Some(Action::Pass) | None, None) => {
                    first(&baseline).is_some_and(|rule| rule.action == Action::Deny)
                }
            };
            let found = match set.find(traffic, address, &selectors) {
                Match::Rule(rule) => rule.action == Action::Deny,
                Match::Isolated => true,
                Match::Nothing => false,
            };
            prop_assert_eq!(found, is_denied);
        }
    }
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 244, 0, last])
}

fn subject(name: &str, selectors: &[u32], ingress: Option<RuleSetSpec>) -> Subject {
    let selectors = selectors.iter().copied().map(SelectorIx).collect();
    let ingress = ingress.map(|spec| Arc::new(RuleSet::new(spec)));
    let (name, selectors) = (Arc::from(name), Arc::new(selectors));
    Subject { name, selectors, egress: None, ingress, audit: false }
}

fn from_selector(selector: u32, port: u16) -> Rule {
    let port = PortMatch { protocol: Protocol::Tcp, ports: port..=port };
    Rule {
        name: rule_name(Tier::Namespace, "shop/allow-web", 0),
        action: Action::Accept,
        peers: Peers::Some { selectors: vec![SelectorIx(selector)], blocks: vec![] },
        ports: vec![port],
    }
}

fn isolated(rules: Vec<Rule>) -> RuleSetSpec {
    let policies = vec![PolicyName::new(Tier::Namespace, "shop/allow-web")];
    RuleSetSpec { namespace: Some(Isolation { policies, rules }), ..RuleSetSpec::default() }
}

/// A pod that lets others with selector 7 in at TCP port 80, one that has it, and one that has not.
fn table(audit: bool) -> PolicyTable {
    let mut builder = PolicyTableBuilder::new(Enforcement::On);
    let db =
        Subject { audit, ..subject("shop/db", &[1], Some(isolated(vec![from_selector(7, 80)]))) };
    builder.subject(address(1), Arc::new(db));
    builder.subject(address(2), Arc::new(subject("shop/web", &[7], None)));
    builder.subject(address(3), Arc::new(subject("shop/other", &[], None)));
    builder.build(1)
}

fn question(from: u8, to: u8, protocol: Protocol, port: u16) -> Question {
    Question {
        from: address(from),
        to: address(to),
        traffic: Traffic::Port { protocol, port },
        is_own_node: false,
    }
}

#[test]
fn a_judgement_says_why() {
    let table = table(false);
    let ask = |question: &Question| {
        let Ruling { is_denied, isolating, why, .. } = judge(&table, question).ingress;
        (is_denied, isolating.len(), why)
    };
    let web = question(2, 1, Protocol::Tcp, 80);
    let (is_denied, isolating, why) = ask(&web);
    assert!(!is_denied && isolating == 1);
    let Why::Rule(rule) = why else { panic!("{why:?}") };
    assert_eq!(rule.to_string(), "shop/allow-web ingress[0]");
    assert_eq!(ask(&question(2, 1, Protocol::Tcp, 81)), (true, 1, Why::NoMatch));
    assert_eq!(
        ask(&question(2, 1, Protocol::Sctp, 80)),
        (true, 1, Why::NoMatch),
        "SCTP is not TCP"
    );
    assert_eq!(ask(&question(3, 1, Protocol::Tcp, 80)), (true, 1, Why::NoMatch));
    assert_eq!(ask(&Question { traffic: Traffic::Portless, ..web }), (true, 1, Why::NoMatch));
    assert_eq!(ask(&question(1, 1, Protocol::Tcp, 9)), (false, 1, Why::Itself));
    assert_eq!(ask(&question(1, 2, Protocol::Tcp, 9)), (false, 0, Why::NoRules));
    let probe = Question { is_own_node: true, ..question(9, 1, Protocol::Tcp, 9) };
    assert_eq!(ask(&probe), (false, 1, Why::OwnNode));
    assert!(judge(&table, &web).egress.passes());
}

#[test]
fn what_is_audited_passes_and_is_counted_as_denied() {
    let denied = question(3, 1, Protocol::Tcp, 80);
    for (is_audited, table) in [(false, table(false)), (true, table(true))] {
        let ruling = judge_ingress(&table, &denied);
        assert_eq!((ruling.is_denied, ruling.passes()), (true, is_audited));
        ruling.count(Direction::Ingress, 3);
        assert_eq!(ruling.isolating[0].denied(Direction::Ingress), 3);
        assert_eq!(ruling.isolating[0].denied(Direction::Egress), 0);
    }
    let mut edit = table(false).edit();
    edit.enforcement(Enforcement::Audit);
    assert!(judge(&edit.build(2), &denied).passes());
}

#[test]
fn rules_count_what_they_decide() {
    let table = table(false);
    let ruling = judge_ingress(&table, &question(2, 1, Protocol::Tcp, 80));
    ruling.count(Direction::Ingress, 1);
    let Why::Rule(rule) = ruling.why else { panic!("{:?}", ruling.why) };
    assert_eq!(rule.counts(), Counts { matched: 1, denied: 0 });
}

#[test]
fn tables_change_piece_by_piece_and_old_ones_stay() {
    let old = table(false);
    let name = PolicyName::new(Tier::Namespace, "shop/allow-web");
    let mut edit = old.edit();
    edit.remove_subject(address(1));
    edit.policy(Arc::new(Policy { name, rules: vec![] }));
    let new = edit.build(2);
    assert!(old.subject(address(1)).is_some() && new.subject(address(1)).is_none());
    assert_eq!((old.len(), new.len(), new.generation()), (3, 2, 2));
    assert_eq!(new.policies()[0].name.as_str(), "shop/allow-web");
    let mut edit = new.edit();
    edit.remove_policy(Tier::Namespace, "shop/allow-web");
    assert!(edit.build(3).policies().is_empty() && !new.policies().is_empty());
}
