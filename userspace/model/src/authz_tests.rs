use std::sync::Arc;

use super::*;

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn rule(matches: Vec<Match>) -> Rule {
    Rule::from_iter([Clause::from_iter(matches)])
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        key: PolicyKey {
            namespace: "shop".into(),
            name: name.into(),
        },
        scope: Scope::Namespace,
        action,
        rules: rules.into(),
        dry_run: false,
    }
}

fn judge(policies: &[Policy], from: Option<&str>, source: &str, destination: &str) -> Decision {
    let identity = from.map(id);
    let connection = Connection {
        source_identity: identity.as_ref(),
        source_ip: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        equivalent: &[],
    };
    applicable(policies).judge(&connection).decision
}

/// All in the scope of their namespace.
fn applicable(policies: &[Policy]) -> Applicable {
    let set = policies.iter().cloned().map(Arc::new).collect();
    Applicable::new([None, Some(Arc::new(set)), None])
}

const WEB: Option<&str> = Some("spiffe://cluster.local/ns/shop/sa/web");
const EVIL: Option<&str> = Some("spiffe://cluster.local/ns/evil/sa/web");

fn web() -> Decision {
    Decision::Allow(AllowReason::NoAllowPolicy)
}

fn rule_id(name: &str, rule: u32) -> RuleId {
    let policy = PolicyKey {
        namespace: "shop".into(),
        name: name.into(),
    };
    RuleId { policy, rule }
}

fn allowed_by(name: &str, rule: u32) -> Decision {
    Decision::Allow(AllowReason::Rule(rule_id(name, rule)))
}

fn denied_by(name: &str, rule: u32) -> Decision {
    Decision::Deny(DenyReason::Rule(rule_id(name, rule)))
}

#[test]
fn the_order_is_deny_then_allow_then_default() {
    let principal = |p: &str| Match::from([Term::any_of(Values::Principals([exact(p)].into()))]);
    let allow_web = policy(
        "allow-web",
        Action::Allow,
        vec![rule(vec![principal("cluster.local/ns/shop/sa/web")])],
    );
    let deny_evil = policy(
        "deny-evil",
        Action::Deny,
        vec![rule(vec![principal("cluster.local/ns/evil/sa/web")])],
    );
    let deny_all = policy("deny-all", Action::Deny, vec![Rule::default()]);
    let allow_nothing = policy("allow-nothing", Action::Allow, vec![]);
    let deny_nothing = policy("deny-nothing", Action::Deny, vec![]);
    let no_allow = Decision::Deny(DenyReason::NoAllowMatched);
    let rows: [(&[&Policy], Option<&str>, Decision); 10] = [
        (&[], WEB, web()),
        (&[], None, web()),
        (&[&deny_evil], WEB, web()),
        (&[&deny_evil], EVIL, denied_by("deny-evil", 0)),
        (&[&allow_web], WEB, allowed_by("allow-web", 0)),
        (&[&allow_web], EVIL, no_allow.clone()),
        (&[&allow_web], None, no_allow.clone()),
        (&[&allow_web, &deny_all], WEB, denied_by("deny-all", 0)),
        (&[&allow_nothing], WEB, no_allow),
        (&[&deny_nothing], WEB, web()),
    ];
    for (policies, from, expected) in rows {
        let policies: Vec<Policy> = policies.iter().copied().cloned().collect();
        let decision = judge(&policies, from, "10.0.0.1", "10.0.0.2:80");
        assert_eq!(decision, expected, "{policies:?} from {from:?}");
    }
}

/// What policies in force decide, and what they would together with those in dry run.
#[test]
fn dry_run_never_decides_and_says_what_it_would() {
    let dry = |mut policy: Policy| {
        policy.dry_run = true;
        policy
    };
    let deny = |name: &str| policy(name, Action::Deny, vec![Rule::default()]);
    let allow = |name: &str| policy(name, Action::Allow, vec![Rule::default()]);
    let nothing = |name: &str| policy(name, Action::Allow, vec![]);
    let no_allow = Decision::Deny(DenyReason::NoAllowMatched);
    let rows = [
        (vec![deny("d")], denied_by("d", 0), None),
        (vec![dry(deny("d"))], web(), Some(denied_by("d", 0))),
        (vec![dry(nothing("n"))], web(), Some(no_allow.clone())),
        (vec![dry(allow("a"))], web(), Some(allowed_by("a", 0))),
        (
            vec![dry(deny("d")), deny("e")],
            denied_by("e", 0),
            Some(denied_by("e", 0)),
        ),
        (
            vec![allow("a"), dry(nothing("n"))],
            allowed_by("a", 0),
            Some(allowed_by("a", 0)),
        ),
        (
            vec![nothing("n"), dry(allow("a"))],
            no_allow,
            Some(allowed_by("a", 0)),
        ),
        (
            vec![allow("a"), dry(deny("d"))],
            allowed_by("a", 0),
            Some(denied_by("d", 0)),
        ),
    ];
    for (policies, decision, dry_run) in rows {
        let identity = id(WEB.unwrap());
        let connection = Connection {
            source_identity: Some(&identity),
            source_ip: [10, 0, 0, 1].into(),
            destination: ([10, 0, 0, 2], 80).into(),
            equivalent: &[],
        };
        let judgement = applicable(&policies).judge(&connection);
        assert_eq!(judgement, Judgement { decision, dry_run }, "{policies:?}");
    }
}

#[test]
fn audit_reports_the_first_rule_of_each_policy_and_decides_nothing() {
    let never = || rule(vec![Match::default()]);
    let policies = [
        policy(
            "b",
            Action::Audit,
            vec![never(), Rule::default(), Rule::default()],
        ),
        policy("a", Action::Audit, vec![Rule::default()]),
        policy("c", Action::Audit, vec![never()]),
    ];
    assert_eq!(judge(&policies, WEB, "10.0.0.1", "10.0.0.2:80"), web());
    let connection = Connection {
        source_identity: None,
        source_ip: [10, 0, 0, 1].into(),
        destination: ([10, 0, 0, 2], 80).into(),
        equivalent: &[],
    };
    let mut reported = Vec::new();
    applicable(&policies).audit(&connection, |rule| reported.push(rule));
    assert_eq!(reported, [rule_id("a", 0), rule_id("b", 1)]);
}

/// A principal of one trust domain is matched by what is said of an equivalent one, and by nothing
/// that is said of others.
#[test]
fn equivalent_trust_domains_are_one() {
    let domains = ["new.example", "old.example"].map(|domain| domain.parse().unwrap());
    let one = |values| vec![rule(vec![Match::from([values])])];
    let old = || Values::Principals([exact("old.example/ns/shop/sa/web")].into());
    let any_old = || Values::Principals([StringMatch::Prefix("old.example/".into())].into());
    let rows = [
        (Term::any_of(old()), [true, true, false]),
        (Term::none_of(old()), [false, false, true]),
        (Term::any_of(any_old()), [true, true, false]),
    ];
    for (term, expected) in rows {
        let deny = applicable(&[policy("p", Action::Deny, one(term.clone()))]);
        let domains_seen = ["new.example", "old.example", "foreign.example"];
        let denied = domains_seen.map(|domain| {
            let identity = id(&format!("spiffe://{domain}/ns/shop/sa/web"));
            let connection = Connection {
                source_identity: Some(&identity),
                source_ip: [10, 0, 0, 1].into(),
                destination: ([10, 0, 0, 2], 80).into(),
                equivalent: &domains,
            };
            !deny.judge(&connection).decision.is_allowed()
        });
        assert_eq!(denied, expected, "{term:?}");
    }
}

/// Each row: a match, whether it matches web in shop from 10.0.0.1 to 10.0.0.2:80, and whether it
/// matches the same without an identity.
#[test]
fn fields() {
    let net = |text: &str| [text.parse().unwrap()];
    let account = |namespace: &str, name: &str| {
        [ServiceAccountMatch {
            namespace: namespace.into(),
            name: name.into(),
        }]
    };
    let prefix = |text: &str| [StringMatch::Prefix(text.into())];
    let suffix = |text: &str| [StringMatch::Suffix(text.into())];
    let any = || [StringMatch::Presence];
    let (is, not) = (Term::any_of, Term::none_of);
    use Values::*;
    #[rustfmt::skip]
    let rows = [
        (vec![], false, false),
        (vec![is(Namespaces([exact("shop")].into()))], true, false),
        (vec![is(Namespaces([exact("other"), exact("shop")].into()))], true, false),
        (vec![is(Namespaces([exact("other")].into()))], false, false),
        (vec![not(Namespaces([exact("shop")].into()))], false, true),
        (vec![is(Namespaces(prefix("sh").into()))], true, false),
        (vec![is(Namespaces(suffix("op").into()))], true, false),
        (vec![is(Namespaces(prefix("hop").into()))], false, false),
        (vec![is(Namespaces(any().into()))], true, false),
        (vec![is(Principals([exact("cluster.local/ns/shop/sa/web")].into()))], true, false),
        (vec![is(Principals([exact("spiffe://cluster.local/ns/shop/sa/web")].into()))], false, false),
        (vec![is(Principals(prefix("cluster.local/ns/shop/").into()))], true, false),
        (vec![is(Principals(prefix("cluster.local/ns/sh").into()))], true, false),
        (vec![is(Principals(prefix("cluster.local/ns/shop/sa/w").into()))], true, false),
        (vec![is(Principals(prefix("cluster.local/ns/hop").into()))], false, false),
        (vec![is(Principals(prefix("cluster.loc").into()))], true, false),
        (vec![is(Principals(suffix("/sa/web").into()))], true, false),
        (vec![is(Principals(suffix("a/web").into()))], true, false),
        (vec![is(Principals(suffix("hop/sa/web").into()))], true, false),
        (vec![is(Principals(suffix("/ns/shop/sa/web").into()))], true, false),
        (vec![is(Principals(suffix("eb").into()))], true, false),
        (vec![is(Principals(suffix("/ns/op/sa/web").into()))], false, false),
        (vec![is(Principals(prefix("spiffe://").into()))], false, false),
        (vec![is(Principals(any().into()))], true, false),
        (vec![not(Principals(any().into()))], false, true),
        (vec![is(ServiceAccounts(account("shop", "web").into()))], true, false),
        (vec![is(ServiceAccounts(account("shop", "db").into()))], false, false),
        (vec![not(ServiceAccounts(account("shop", "web").into()))], false, true),
        (vec![is(SourceIps(net("10.0.0.0/24").into()))], true, true),
        (vec![is(SourceIps(net("10.0.0.7/24").into()))], true, true),
        (vec![is(SourceIps(net("0.0.0.0/0").into()))], true, true),
        (vec![is(SourceIps(net("::/0").into()))], false, false),
        (vec![is(SourceIps(net("10.0.1.0/24").into()))], false, false),
        (vec![not(SourceIps(net("10.0.0.1/32").into()))], false, false),
        (vec![is(DestinationIps(net("10.0.0.2/32").into()))], true, true),
        (vec![not(DestinationIps(net("10.0.0.2/32").into()))], false, false),
        (vec![is(DestinationPorts([443, 80].into()))], true, true),
        (vec![is(DestinationPorts([443].into()))], false, false),
        (vec![not(DestinationPorts([80].into()))], false, false),
        (vec![is(Namespaces([exact("shop")].into())), is(DestinationPorts([443].into()))], false, false),
        (vec![is(Namespaces([exact("shop")].into())), is(DestinationPorts([80].into()))], true, false),
        (vec![is(Namespaces([exact("shop")].into())), not(Namespaces([exact("shop")].into()))], false, false),
        // Without values a term says nothing.
        (vec![is(Namespaces([].into())), is(DestinationPorts([80].into()))], true, true),
        (vec![is(Namespaces([].into()))], false, false),
    ];
    for (matcher, with, without) in rows {
        let matcher = Match::from_iter(matcher);
        let deny = policy("p", Action::Deny, vec![rule(vec![matcher.clone()])]);
        for (from, expected) in [(WEB, with), (None, without)] {
            let decision = judge(std::slice::from_ref(&deny), from, "10.0.0.1", "10.0.0.2:80");
            assert_eq!(
                !decision.is_allowed(),
                expected,
                "{matcher:?} from {from:?}"
            );
        }
    }
}

#[test]
fn clauses_are_anded_and_matches_ored() {
    let port = |port| Match::from([Term::any_of(Values::DestinationPorts([port].into()))]);
    let ns = |ns: &str| Match::from([Term::any_of(Values::Namespaces([exact(ns)].into()))]);
    let clause = Clause::from_iter::<Vec<Match>>;
    let rows = [
        (vec![clause(vec![port(80)]), clause(vec![ns("shop")])], true),
        (
            vec![clause(vec![port(80)]), clause(vec![ns("evil")])],
            false,
        ),
        (vec![clause(vec![port(81), port(80)])], true),
        (vec![clause(vec![]), clause(vec![port(80)])], true),
        (vec![clause(vec![])], true),
        (vec![clause(vec![Match::default()])], false),
        (vec![clause(vec![Match::default(), port(80)])], true),
    ];
    for (clauses, matches) in rows {
        let deny = policy("p", Action::Deny, vec![Rule::from_iter(clauses.clone())]);
        let decision = judge(&[deny], WEB, "10.0.0.1", "10.0.0.2:80");
        assert_eq!(!decision.is_allowed(), matches, "{clauses:?}");
    }
}

#[test]
fn mapped_addresses_are_ipv4() {
    let deny = policy(
        "p",
        Action::Deny,
        vec![rule(vec![Match::from([Term::any_of(Values::SourceIps(
            ["10.0.0.0/8".parse().unwrap()].into(),
        ))])])],
    );
    let decision = judge(&[deny], None, "::ffff:10.0.0.1", "[::ffff:10.0.0.2]:80");
    assert_eq!(decision, denied_by("p", 0));
}

#[test]
fn long_principals_are_compared_whole() {
    let name = "n".repeat(300);
    let source = format!("spiffe://cluster.local/ns/{name}/sa/web");
    let wanted = exact(&format!("cluster.local/ns/{name}/sa/web"));
    let deny = policy(
        "p",
        Action::Deny,
        vec![rule(vec![Match::from([Term::any_of(Values::Principals(
            [wanted].into(),
        ))])])],
    );
    let policies = [deny];
    assert_eq!(
        judge(&policies, Some(&source), "10.0.0.1", "10.0.0.2:80"),
        denied_by("p", 0)
    );
    assert_eq!(
        judge(
            &policies,
            Some(&source[..source.len() - 1]),
            "10.0.0.1",
            "10.0.0.2:80"
        ),
        web()
    );
}

#[path = "authz_oracle.rs"]
mod oracle;
