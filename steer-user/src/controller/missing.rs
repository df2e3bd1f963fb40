//! Objects that a breakout cannot do without, and that could not be put back: the breakout is down until
//! they are. Nothing leaks meanwhile: grants and translation are one table, and routing follows grants.

use super::View;
use crate::system::{Family, Object, PathId, RulePriority, Selector, SystemError};

/// What could not be put into the box, and why.
#[derive(Debug, Default)]
pub(super) struct Missing(Vec<(Object, String)>);

impl Missing {
    /// Takes in the outcome of a repair of `tried`, some or all of what is `wanted`; whether anything
    /// changed.
    pub(super) fn note(
        &mut self,
        wanted: &[Object],
        tried: &[Object],
        failed: &[(Object, SystemError)],
    ) -> bool {
        let failed = failed
            .iter()
            .map(|(object, error)| (object.clone(), error.to_string()));
        // The route by a gateway that is not the gateway any more is missed by nobody.
        let others = self.0.iter();
        let others = others.filter(|(it, _)| wanted.contains(it) && !tried.contains(it));
        let others = others.cloned();
        let now: Vec<_> = others.chain(failed).collect();
        let changed = now != self.0;
        self.0 = now;
        changed
    }

    /// Says of each family of a breakout that lacks nothing else which of its objects is missing.
    pub(super) fn mark(&self, view: &mut View) {
        for breakout in &mut view.breakouts {
            for family in Family::BOTH {
                let lack = &mut breakout.lacks[family.index()];
                if lack.is_none() {
                    *lack = self.trouble(breakout.id, family);
                }
            }
            if breakout.trouble.is_none() && breakout.lacks.iter().all(Option::is_some) {
                breakout.trouble.clone_from(&breakout.lacks[0]);
            }
        }
    }

    fn trouble(&self, path: PathId, family: Family) -> Option<String> {
        let needed = |it: &Object| is_needed(it, path, family);
        let (object, why) = self.0.iter().find(|(it, _)| needed(it))?;
        Some(format!(
            "`{object}` is missing and cannot be put back: {why}"
        ))
    }
}

/// Whether a family cannot use a path without the object.
fn is_needed(object: &Object, path: PathId, family: Family) -> bool {
    match object {
        Object::NftTable(_) => true,
        Object::Route(route) => (route.table, route.family) == (path.table(), family),
        Object::Rule(rule) if rule.family != family => false,
        Object::Rule(rule) => match rule.selector {
            // Without it answers are sent back to where they came from.
            Selector::Mark { .. } => {
                rule.table == path.table() || rule.priority == RulePriority::SPECIFIC
            }
            Selector::From(_) | Selector::Device(_) => rule.table == path.table(),
            Selector::OwnMark { .. } => false,
        },
        Object::Sysctl(_) | Object::Gateway(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::system::{InterfaceName, NextHop, Route, Sysctl};

    fn route(path: u8) -> Object {
        Object::Route(Route {
            family: Family::V4,
            table: PathId::new(path).unwrap().table(),
            interface: InterfaceName::new("brk0").unwrap(),
            next_hop: Some(NextHop::Device),
        })
    }

    fn failed(object: Object) -> (Object, SystemError) {
        let error = SystemError::Socket(io::Error::other("no room"));
        (object, error)
    }

    #[test]
    fn a_missing_route_is_the_trouble_of_its_path_until_it_is_back() {
        let (one, two) = (PathId::new(1).unwrap(), PathId::new(2).unwrap());
        let both = [route(1), route(2)];
        let mut missing = Missing::default();
        assert!(!missing.note(&both, &[route(1)], &[]));
        assert!(missing.note(&both, &[route(1)], &[failed(route(1))]));
        assert!(
            !missing.note(&both, &[route(1)], &[failed(route(1))]),
            "the same again"
        );
        assert!(
            missing
                .trouble(one, Family::V4)
                .unwrap()
                .contains("no room")
        );
        assert_eq!(missing.trouble(two, Family::V4), None);
        assert_eq!(missing.trouble(one, Family::V6), None, "a route of IPv4");
        assert!(!missing.note(&both, &[route(2)], &[]), "not looked at");
        assert!(missing.trouble(one, Family::V4).is_some());
        assert!(missing.note(&both, &both, &[]));
        assert_eq!(missing.trouble(one, Family::V4), None);
    }

    #[test]
    fn what_is_not_wanted_any_more_is_not_missing() {
        let other = Object::Route(Route {
            family: Family::V4,
            table: PathId::new(1).unwrap().table(),
            interface: InterfaceName::new("brk1").unwrap(),
            next_hop: Some(NextHop::Device),
        });
        let mut missing = Missing::default();
        let (before, now) = ([route(1)], [other]);
        assert!(missing.note(&before, &before, &[failed(route(1))]));
        assert!(missing.note(&now, &now, &[]));
        assert_eq!(missing.trouble(PathId::new(1).unwrap(), Family::V4), None);
    }

    #[test]
    fn a_sysctl_is_no_trouble() {
        let interface = InterfaceName::new("brk0").unwrap();
        let sysctl = Sysctl::of_interface(Family::V4, &interface, "rp_filter", 2);
        let mut missing = Missing::default();
        missing.note(&[], &[], &[failed(Object::Sysctl(sysctl))]);
        assert_eq!(missing.trouble(PathId::new(1).unwrap(), Family::V4), None);
    }
}
