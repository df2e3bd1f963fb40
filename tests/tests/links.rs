//! Breakouts on every kind of interface that this kernel has, in both modes. The kinds that it lacks
//! are steered in `cargo xtask kernels`, whose guests have them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

use steer_tests::{
    links::{Kind, lay, office, steers_over},
    steer::{Mode, Settings, command, write_config},
};
use steer_user::datapath::attached_at;

/// Why redirect mode does not start with such a breakout.
fn refused(kind: Kind, more: &str) -> String {
    let lab = office(Mode::Redirect).unwrap();
    let _laid = lay(&lab, kind).unwrap().unwrap();
    let settings = Settings {
        mode: Mode::Redirect,
        more: more.to_owned(),
        ..Settings::default()
    };
    let config = write_config(&lab, &settings).unwrap();
    let output = command(&lab, &config, &["run"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let programs = lab.router.run(|| Ok(attached_at("lan0"))).unwrap();
    assert_eq!(programs.unwrap_or_default(), [""; 0]);
    assert!(!lab.pin_directory().exists());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn redirect_mode_refuses_a_bare_ip_breakout_and_says_what_to_do() {
    let said = refused(Kind::Tun, "");
    assert!(
        said.contains("(brk0) carries IP packets without Ethernet headers"),
        "{said}"
    );
    assert!(said.contains("Use mode = \"mark\""), "{said}");
}

#[test]
fn native_xdp_is_refused_where_it_would_lose_what_it_sends() {
    let said = refused(Kind::Bridge, "[redirect]\nxdp = \"native\"\n");
    assert!(said.contains("(brk0) is a bridge"), "{said}");
    assert!(said.contains("\"generic\""), "{said}");
}

macro_rules! kinds {
    ($($name:ident: $kind:ident, $mode:ident;)*) => {$(
        #[test]
        fn $name() {
            let kind = Kind::$kind;
            if !steers_over(kind, Mode::$mode).unwrap() {
                println!("skipped: this kernel has no {kind} devices; `cargo xtask kernels` has");
            }
        }
    )*};
}

kinds! {
    a_vlan_is_a_breakout_in_mark_mode: Vlan, Mark;
    a_bridge_is_a_breakout_in_mark_mode: Bridge, Mark;
    a_bond_is_a_breakout_in_mark_mode: Bond, Mark;
    a_vxlan_tunnel_is_a_breakout_in_mark_mode: Vxlan, Mark;
    a_bare_ip_device_is_a_breakout_in_mark_mode: Tun, Mark;
    a_gre_tunnel_is_a_breakout_in_mark_mode: Gre, Mark;
    a_port_in_a_vrf_is_a_breakout_in_mark_mode: Vrf, Mark;
    a_pppoe_session_is_a_breakout_in_mark_mode: Pppoe, Mark;
    a_vlan_is_a_breakout_in_redirect_mode: Vlan, Redirect;
    a_bridge_is_a_breakout_in_redirect_mode: Bridge, Redirect;
}
