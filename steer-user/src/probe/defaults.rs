//! What is probed when the configuration names nothing: front doors that the endpoint list itself
//! names with their address.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::{
    config::{ProbeKind, Target},
    endpoints::{Category, EndpointSet, Feed},
    system::Family,
};

/// As many as tell a dead target from a dead path, and one more.
const ENOUGH: usize = 4;
const HTTPS: u16 = 443;
/// A prefix of at most two addresses is the virtual address of a front door, not a pool.
const POOL_BITS: u8 = 2;

/// Front doors of Optimize sets in this family: up to four, the first addresses of prefixes that
/// hold one or two of them. Their certificates must hold one of the set's names.
pub fn front_doors(feed: &Feed, family: Family) -> Vec<Target> {
    let optimize =
        |set: &&EndpointSet| set.category == Category::Optimize && set.tcp.contains(HTTPS);
    let doors = feed.sets.iter().filter(optimize).flat_map(|set| {
        let single = set.prefixes.iter().filter(move |prefix| {
            Family::of(prefix.addr()) == family
                && prefix.max_prefix_len() - prefix.prefix_len() < POOL_BITS
        });
        single.map(move |prefix| door(set, prefix))
    });
    doors.take(ENOUGH).collect()
}

fn door(set: &EndpointSet, prefix: &IpNet) -> Target {
    let address: IpAddr = prefix.network();
    let names = set.names.iter().map(|name| name.as_str().to_owned());
    let names = names.filter(|name| !name.contains('*')).collect();
    Target {
        kind: ProbeKind::Tls,
        address: SocketAddr::new(address, HTTPS),
        names,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_list_names_four_front_doors_of_exchange() {
        let feed = Feed::builtin().unwrap();
        for family in [Family::V4, Family::V6] {
            let doors = front_doors(&feed, family);
            assert_eq!(doors.len(), ENOUGH, "{doors:?}");
            for door in &doors {
                assert_eq!(door.address.port(), HTTPS);
                assert!(door.names.contains(&"outlook.office365.com".to_owned()));
            }
        }
    }
}
