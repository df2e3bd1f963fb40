//! An overlay with a table of its own as the backbone.

use steer_tests::{
    scenario::flows,
    server::Site,
    steer::Steer,
    traffic::{Flow, probe_all},
    wire::{Capture, Path},
};

use super::{book::Recipe, office, other, wait_until_up};

#[test]
fn an_overlay_carries_what_is_not_steered_and_its_specific_routes_win() {
    let lab = office();
    let recipe = Recipe::named("An overlay as the backbone");
    lab.backbone
        .ip(
            "link add ovl0 type vxlan id 42 local 10.99.0.1 remote 10.99.0.2 dstport 4789\n\
             address add 10.98.0.1/30 dev ovl0\naddress add fd98::1/64 dev ovl0 nodad\n\
             link set ovl0 up mtu 1400\n\
             route replace 10.20.0.0/16 via 10.98.0.2\nroute replace fd20:0:0:1::/64 via fd98::2\n",
        )
        .unwrap();
    recipe.run_on_router(&lab);
    // A destination of Microsoft's that headquarters has a better way to.
    let better = Flow::tcp("52.96.200.1".parse().unwrap(), 443);
    lab.router
        .ip("route add 52.96.200.0/24 via 10.98.0.1 dev ovl0 table 51820\n")
        .unwrap();
    let steer = Steer::start_with(&lab, recipe.steer()).unwrap();
    wait_until_up(&steer);

    let captures = lab.capture().unwrap();
    let overlay = Capture::start(&lab.backbone, "ovl0").unwrap();
    let answers = probe_all(&lab.client, &flows(4, 4)).unwrap();
    let others = probe_all(&lab.client, &[other(), better]).unwrap();
    let overlay = overlay.stop().unwrap();
    let wires = captures.stop().unwrap();
    for answer in answers {
        assert_eq!(wires.path_of(&answer), Path::BREAKOUT, "{}", answer.flow);
    }
    for answer in others {
        assert_eq!(answer.site, Site::Far, "{}", answer.flow);
        let seen = overlay.iter().any(|it| it.source == answer.local);
        assert!(seen, "{} is not in the overlay", answer.flow);
    }
    assert_eq!(wires.leaks(), []);
    steer.detach().unwrap();
}
