//! Each finding is provoked in a network namespace of its own, and is absent before: the same office
//! is examined healthy first. What belongs to the whole machine (kernel, clock, privileges) is
//! changed in what was read.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tempfile::TempDir;
use tokio::net::UdpSocket;

use super::{
    Area, CHECKS, Fix, Patient, State, diagnose, fix, page, patient::Manager, synthetic::Outcome,
};
use crate::{
    config::{Config, Mode},
    controller::{look, report},
    datapath::{Datapath, LogLevel, PinDir, XdpChoice, trial::foreign},
    system::{
        self, Kernel,
        conntrack::Usage,
        testing::{assert_same, in_namespace, link, sh},
        xdp::XdpFeatures,
    },
};

/// A router with everything as it should be, in the namespace of the test.
struct Office {
    config: Config,
    root: TempDir,
    pins: PinDir,
    _state: TempDir,
}

const LINKS: &str = "
    ip addr add 10.1.0.1/24 dev lan0; ip addr add 2001:db8:1::1/64 dev lan0 nodad
    ip addr add 10.9.0.2/24 dev bb0; ip addr add 2001:db8:9::2/64 dev bb0 nodad
    ip addr add 192.0.2.2/28 dev brk0; ip addr add 2001:db8:b0::2/64 dev brk0 nodad
    ip route add default via 10.9.0.1 dev bb0 metric 100
    ip -6 route add default via 2001:db8:9::1 dev bb0 metric 100
    echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
    echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
    echo 0 > /proc/sys/net/ipv4/conf/brk0/rp_filter";

impl Office {
    async fn open() -> Self {
        Self::with("", "").await
    }

    /// With more for the router, and more lines in the configuration.
    async fn with(commands: &str, lines: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        for name in ["lan0", "bb0", "brk0"] {
            link(name);
        }
        sh(LINKS);
        sh(commands);
        // A resolver that answers everything, with the same words.
        let socket = UdpSocket::bind("127.0.0.1:53").await.unwrap();
        tokio::spawn(async move {
            let mut question = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question).await {
                question[2] |= 0x80;
                socket.send_to(&question[..length], from).await.unwrap();
            }
        });
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(
            root.path().join("etc/resolv.conf"),
            "search example\nnameserver 127.0.0.1\n",
        )
        .unwrap();
        let state = tempfile::tempdir().unwrap();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let pins = format!("/sys/fs/bpf/steer-doctor-{}-{number}", std::process::id());
        let text = format!(
            "{lines}
            {lan}
            [backbone]\ninterface = \"bb0\"
            [[breakout]]\nname = \"fiber\"\ninterface = \"brk0\"
            gateway = \"192.0.2.1\"\ngateway6 = \"2001:db8:b0::1\"
            [system]\npin_dir = \"{pins}\"\nstate_dir = \"{state}\"\nrun_dir = \"{state}\"",
            state = state.path().display(),
            lan = if lines.starts_with("lan =") {
                ""
            } else {
                "[[lan]]\ninterface = \"lan0\""
            },
        );
        Self {
            config: Config::parse("office", &text).unwrap(),
            root,
            pins: PinDir::new(pins),
            _state: state,
        }
    }

    async fn examine(&self) -> Patient {
        Patient::examine(&self.config, self.root.path())
            .await
            .unwrap()
    }

    /// What one check says, healthiest first.
    async fn says(&self, check: &str) -> Vec<(State, String)> {
        said(&self.examine().await, check)
    }

    /// Fails unless the check has nothing to say but that all is well.
    #[track_caller]
    fn well(said: &[(State, String)]) {
        assert!(
            !said.is_empty() && said.iter().all(|(state, _)| *state == State::Ok),
            "{said:?}"
        );
    }

    /// Puts steer into the box, as a killed controller leaves it.
    async fn steer(&self) {
        let mut kernel = Kernel::open(&self.config.system.state_dir).unwrap();
        let view = look::look(&kernel, &self.config, &[]).await.unwrap();
        let objects = report::objects(&self.config, &view);
        system::apply_all(&mut kernel, &objects).await.unwrap();
        let mut datapath =
            Datapath::load(Mode::Mark, self.pins.clone(), view.ports, 0, LogLevel::Off).unwrap();
        datapath.attach(XdpChoice::Auto).unwrap();
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        self.pins.remove().unwrap();
    }
}

fn said(patient: &Patient, check: &str) -> Vec<(State, String)> {
    assert!(CHECKS.iter().any(|it| it.name == check), "no check {check}");
    diagnose(patient)
        .into_iter()
        .filter(|it| it.check.name == check)
        .map(|it| (it.state, it.found))
        .collect()
}

/// Fails unless the check's worst is this, with these words.
#[track_caller]
fn finds(said: &[(State, String)], state: State, words: &str) {
    let worst = said.iter().map(|it| it.0).max();
    assert!(
        worst == Some(state) && said.iter().any(|it| it.0 == state && it.1.contains(words)),
        "{said:#?}"
    );
}

/// Examines a healthy office, runs the commands, and examines it again.
fn provoked(check: &'static str, commands: &'static str, state: State, words: &'static str) {
    in_namespace(async move || {
        let office = Office::open().await;
        Office::well(&office.says(check).await);
        sh(commands);
        finds(&office.says(check).await, state, words);
    });
}

/// Examines a healthy office, changes what was read, and lets the check look again.
fn changed(
    check: &'static str,
    change: impl FnOnce(&mut Patient) + Send + 'static,
    state: State,
    words: &'static str,
) {
    in_namespace(async move || {
        let mut patient = Office::open().await.examine().await;
        Office::well(&said(&patient, check));
        change(&mut patient);
        finds(&said(&patient, check), state, words);
    });
}

#[test]
fn a_healthy_office_has_nothing_wrong() {
    in_namespace(async || {
        let office = Office::open().await;
        let findings = diagnose(&office.examine().await);
        let unwell: Vec<_> = findings
            .iter()
            .filter(|it| it.state != State::Ok)
            .map(|it| (it.check.name, &*it.found))
            .collect();
        let expected = ["controller", "objects"];
        assert!(
            unwell.iter().map(|it| it.0).eq(expected),
            "steer does not run yet, and nothing else is to be said: {unwell:#?}"
        );
        assert!(findings.iter().all(|it| it.state != State::Wrong));
    });
}

#[test]
fn looking_changes_nothing() {
    in_namespace(async || {
        let office = Office::open().await;
        let state = || {
            sh("ip -d addr; ip rule; ip -6 rule; ip route show table all; \
                ip -6 route show table all | grep -v ' multicast '; nft list ruleset; \
                cat /proc/sys/net/ipv4/conf/*/* 2>/dev/null")
        };
        let before = state();
        office.examine().await;
        assert_same(&state(), &before);
        assert!(!office.pins.exists());
    });
}

#[test]
fn missing_privileges_are_named() {
    changed(
        "privileges",
        // All but CAP_NET_ADMIN and CAP_SYS_ADMIN.
        |it| it.capabilities = !(1 << 12 | 1 << 21),
        State::Wrong,
        "CAP_NET_ADMIN, CAP_SYS_ADMIN",
    );
}

#[test]
fn a_program_that_does_not_load_is_named() {
    changed(
        "programs",
        |it| it.trial = Err("the kernel refuses the program".into()),
        State::Wrong,
        "refuses",
    );
    in_namespace(async || {
        let mut patient = Office::open().await.examine().await;
        patient.trial = Err("the kernel refuses the program".into());
        let remedy = |patient: &Patient| {
            let mut findings = diagnose(patient).into_iter();
            findings
                .find(|it| it.check.name == "programs")
                .unwrap()
                .remedy
                .unwrap()
        };
        assert!(remedy(&patient).contains("kernel"));
        patient.capabilities = 0;
        assert!(remedy(&patient).contains("root"));
    });
}

#[test]
fn an_interpreted_program_is_named() {
    changed(
        "jit",
        |it| it.trial.as_mut().unwrap().machine_code = 0,
        State::Wrong,
        "lan_ingress is interpreted",
    );
}

#[test]
fn a_kernel_without_tcx_is_named() {
    changed("hook", |it| it.ports[0].tcx = None, State::Note, "no TCX");
}

#[test]
fn a_kernel_without_type_information_is_named() {
    changed("btf", |it| it.kernel_btf = false, State::Note, "BTF");
}

#[test]
fn an_nft_that_is_missing_or_refuses_the_table_is_named() {
    changed(
        "nftables",
        |it| it.table = Some(Err("syntax error".into())),
        State::Wrong,
        "does not take steer's table: syntax error",
    );
    changed(
        "nftables",
        |it| it.nft = Err("cannot start `nft`".into()),
        State::Wrong,
        "cannot start",
    );
}

#[test]
fn a_pin_directory_elsewhere_is_named() {
    in_namespace(async || {
        let mut office = Office::open().await;
        Office::well(&office.says("bpffs").await);
        office.config.system.pin_dir = office.root.path().join("pins");
        finds(
            &office.says("bpffs").await,
            State::Wrong,
            "not on a BPF file system",
        );
    });
}

#[test]
fn a_missing_bpf_file_system_is_mounted_by_fix() {
    in_namespace(async || {
        // Mounts of this thread alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_FS)
            .unwrap();
        sh("mount --make-rprivate /");
        let office = Office::open().await;
        sh("umount /sys/fs/bpf");
        let patient = office.examine().await;
        finds(&said(&patient, "bpffs"), State::Wrong, "BPF file system");
        let fixes: Vec<Fix> = diagnose(&patient)
            .into_iter()
            .filter(|it| it.check.name == "bpffs")
            .filter_map(|it| it.fix)
            .collect();
        let done = fix(&office.config, &fixes).await;
        assert_eq!(
            done,
            [Ok("mounted a BPF file system at /sys/fs/bpf".into())]
        );
        Office::well(&office.says("bpffs").await);
        sh("umount /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf");
    });
}

#[test]
fn offloads_that_take_packets_past_steer_are_named() {
    let with = |feature: &'static str| {
        move |it: &mut Patient| {
            it.ports[0]
                .features
                .as_mut()
                .unwrap()
                .insert(feature.to_owned());
        }
    };
    changed("offloads", with("rx-lro"), State::Note, "LRO is on");
    changed(
        "offloads",
        with("hw-tc-offload"),
        State::Note,
        "hardware offload",
    );
    changed(
        "offloads",
        |it| {
            it.ports[0].features = Some(BTreeSet::from(["rx-lro".to_owned()]));
            it.config.mode = Mode::Redirect;
        },
        State::Wrong,
        "LRO is on",
    );
}

#[test]
fn the_offloads_that_are_read_are_those_of_the_device() {
    provoked("lan", "ethtool -K lan0 gro on", State::Ok, "lan0");
    in_namespace(async || {
        let office = Office::open().await;
        for (setting, expected) in [("on", "GRO is on"), ("off", "GRO is off")] {
            sh(&format!("ethtool -K lan0 gro {setting}"));
            finds(&office.says("offloads").await, State::Ok, expected);
        }
    });
}

#[test]
fn an_mtu_that_does_not_fit_is_named() {
    provoked(
        "mtu",
        "ip link set brk0 mtu 1200",
        State::Wrong,
        "too small for IPv6",
    );
    provoked("mtu", "ip link set lan0 mtu 9000", State::Note, "clamped");
}

#[test]
fn a_driver_that_does_not_do_what_redirect_mode_asks_is_named() {
    in_namespace(async || {
        assert_eq!(Office::open().await.says("driver").await, []);
    });
    in_namespace(async || {
        let mut office = Office::with("", "mode = \"redirect\"").await;
        sh("ethtool -K brk0-p gro off");
        let mut patient = office.examine().await;
        if patient.drivers["lan0"].is_none() {
            println!("skipped: this kernel does not tell");
            return;
        }
        // A veth device takes frames when its other end is ready to read them.
        finds(
            &said(&patient, "driver"),
            State::Wrong,
            "brk0: the driver takes no frames from native XDP",
        );
        sh("ethtool -K brk0-p gro on");
        Office::well(&office.says("driver").await);
        sh("ethtool -K brk0-p gro off");
        office.config.redirect.xdp = XdpChoice::Generic;
        Office::well(&office.says("driver").await);

        let none = Some(XdpFeatures::NONE);
        patient.drivers.insert("lan0".into(), none);
        finds(&said(&patient, "driver"), State::Note, "generic XDP");
        patient.config.redirect.xdp = XdpChoice::Native;
        finds(
            &said(&patient, "driver"),
            State::Wrong,
            "lan0: the driver runs no XDP programs",
        );
        patient.drivers.insert("lan0".into(), None);
        finds(&said(&patient, "driver"), State::Note, "does not tell");
    });
}

#[test]
fn a_bridge_whose_packets_pass_the_firewall_first_is_named() {
    in_namespace(async || {
        let mut office = Office::with("ip link add br0 type bridge; ip link set br0 up", "").await;
        sh("ip addr add 10.2.0.1/24 dev br0; ip link set brk0-p nomaster");
        office.config.lans[0].interface = system::InterfaceName::new("br0").unwrap();
        let bridged = |on: u8| {
            sh(&format!(
                "echo {on} > /proc/sys/net/bridge/bridge-nf-call-iptables
                 echo 0 > /proc/sys/net/bridge/bridge-nf-call-ip6tables"
            ));
        };
        bridged(0);
        Office::well(&office.says("bridge-netfilter").await);
        bridged(1);
        finds(&office.says("bridge-netfilter").await, State::Wrong, "br0");
    });
}

#[test]
fn a_lan_that_cannot_work_is_named() {
    provoked("lan", "ip link set lan0 down", State::Wrong, "lan0 is down");
    provoked("lan", "ip link del lan0", State::Wrong, "lan0");
    provoked("lan", "ip addr flush dev lan0", State::Wrong, "no client");
}

#[test]
fn a_breakout_that_cannot_work_is_named() {
    provoked(
        "breakouts",
        "ip link set brk0-p down; until ip link show brk0 | grep -q NO-CARRIER; do sleep 0.01; done",
        State::Wrong,
        "fiber is down: brk0 has no carrier",
    );
}

#[test]
fn a_backbone_that_cannot_work_is_named() {
    provoked("backbone", "ip link set bb0 down", State::Wrong, "bb0");
    provoked("backbone", "ip link del bb0", State::Wrong, "no interface");
    provoked(
        "backbone",
        "ip route del default; ip -6 route del default",
        State::Note,
        "no default route",
    );
}

#[test]
fn forwarding_that_is_off_is_named() {
    provoked(
        "forwarding",
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
        State::Wrong,
        "IPv4 forwarding is off",
    );
    provoked(
        "forwarding",
        "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
        State::Wrong,
        "IPv6 forwarding is off",
    );
}

#[test]
fn a_reverse_path_filter_that_drops_answers_is_named_and_fixed() {
    in_namespace(async || {
        let office = Office::open().await;
        Office::well(&office.says("reverse-path").await);
        // The larger of the two counts.
        sh("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter");
        finds(
            &office.says("reverse-path").await,
            State::Note,
            "brk0: strict, without",
        );
        office.steer().await;
        Office::well(&office.says("reverse-path").await);
        sh("echo 0 > /proc/sys/net/ipv4/conf/brk0/src_valid_mark");
        let patient = office.examine().await;
        finds(&said(&patient, "reverse-path"), State::Wrong, "without");
        let fixes: Vec<Fix> = diagnose(&patient)
            .into_iter()
            .filter(|it| it.check.name == "reverse-path")
            .filter_map(|it| it.fix)
            .collect();
        let done = fix(&office.config, &fixes).await;
        assert_eq!(
            done,
            [Ok(
                "applied `sysctl -w net/ipv4/conf/brk0/src_valid_mark=1`".into()
            )]
        );
        Office::well(&office.says("reverse-path").await);
        let mut kernel = Kernel::open(&office.config.system.state_dir).unwrap();
        let all = system::leftovers(&mut kernel, &[]).await.unwrap();
        assert!(system::remove_all(&mut kernel, &all).await.is_empty());
        assert_eq!(
            sh("cat /proc/sys/net/ipv4/conf/brk0/src_valid_mark").trim(),
            "0",
            "what --fix set has a way back"
        );
    });
}

#[test]
fn default_routes_of_a_breakout_are_judged_by_their_metric() {
    provoked(
        "default-routes",
        "ip route add default via 192.0.2.1 dev brk0 metric 50 proto dhcp",
        State::Wrong,
        "metric 50 (DHCP), not behind the backbone's 100",
    );
    provoked(
        "default-routes",
        "ip -6 route add default via fe80::1 dev brk0 metric 1024 proto ra",
        State::Note,
        "(router advertisement), behind the backbone's 100",
    );
    provoked(
        "default-routes",
        "ip route del default; ip route add default via 192.0.2.1 dev brk0",
        State::Wrong,
        "the backbone has none",
    );
}

#[test]
fn a_tunnel_over_the_breakout_is_named() {
    in_namespace(async || {
        let mut office = Office::with(
            "ip link add vx0 type vxlan id 7 remote 198.51.100.9 dstport 4789
             ip link set vx0 up; ip addr add 10.8.0.1/30 dev vx0",
            "",
        )
        .await;
        office.config.backbone = Some(system::InterfaceName::new("vx0").unwrap());
        Office::well(&office.says("shared-link").await);
        sh("ip route add 198.51.100.9 via 192.0.2.1 dev brk0");
        finds(
            &office.says("shared-link").await,
            State::Note,
            "packets to 198.51.100.9 leave by the breakout brk0",
        );
        sh("ip tuntap add tun0 mode tun");
        office.config.backbone = Some(system::InterfaceName::new("tun0").unwrap());
        finds(
            &office.says("shared-link").await,
            State::Note,
            "cannot be read",
        );
    });
}

#[test]
fn ipv6_that_stays_on_the_backbone_is_named() {
    provoked(
        "ipv6",
        "ip -6 addr flush dev brk0",
        State::Note,
        "IPv6 does not leave by fiber",
    );
    provoked("ipv6", "ip -6 addr flush dev lan0", State::Ok, "no IPv6");
}

#[test]
fn rules_before_ours_are_named_and_ours_are_not() {
    provoked(
        "rules",
        "ip rule add pref 300 from 10.1.0.0/24 lookup 7",
        State::Note,
        "ip -4 rule pref 300",
    );
    in_namespace(async || {
        let office = Office::open().await;
        office.steer().await;
        sh("ip rule add pref 5000 from all lookup 7");
        Office::well(&office.says("rules").await);
    });
}

#[test]
fn programs_of_others_are_named() {
    in_namespace(async || {
        let office = Office::open().await;
        office.steer().await;
        Office::well(&office.says("xdp").await);
        Office::well(&office.says("tc-programs").await);
        let _xdp = foreign::xdp("lan0");
        let _tcx = foreign::tcx("lan0");
        finds(&office.says("xdp").await, State::Note, "foreign_prog");
        finds(
            &office.says("tc-programs").await,
            State::Note,
            "foreign_tcx (TCX)",
        );
        let mut patient = office.examine().await;
        patient.config.mode = Mode::Redirect;
        finds(&said(&patient, "xdp"), State::Wrong, "foreign_prog");
    });
}

#[test]
fn a_clsact_filter_of_others_is_named() {
    provoked(
        "tc-programs",
        "tc qdisc add dev lan0 clsact
         tc filter add dev lan0 ingress u32 match u32 0 0 flowid 1:1",
        State::Note,
        "u32 (clsact)",
    );
    in_namespace(async || {
        let office = Office::open().await;
        sh("tc qdisc add dev lan0 clsact");
        Office::well(&office.says("tc-programs").await);
        let _filter = foreign::clsact("lan0");
        let said = office.says("tc-programs").await;
        finds(&said, State::Note, "lan0: foreign_tcx (clsact) beside");
    });
}

#[test]
fn whoever_uses_our_bits_is_named() {
    provoked(
        "marks",
        "nft add table inet t; nft 'add chain inet t c { type filter hook forward priority 0; }'
         nft add rule inet t c meta mark set 0x21000000",
        State::Wrong,
        "chain inet t c writes",
    );
    provoked(
        "marks",
        "ip rule add pref 700 fwmark 0x1/0xff000000 lookup 7",
        State::Note,
        "rule pref 700 compares",
    );
}

#[test]
fn flow_tables_are_named() {
    changed(
        "flow-tables",
        |it| {
            let owners = it.owners.as_mut().unwrap();
            owners.flow_tables.insert("flowtable inet f ft".into());
        },
        State::Note,
        "flowtable inet f ft",
    );
}

#[test]
fn a_translation_that_nobody_does_is_named() {
    in_namespace(async || {
        let office = Office::with(
            "nft add table ip n; nft 'add chain ip n c { type nat hook postrouting priority 100; }'
             nft add rule ip n c oifname brk0 masquerade",
            "mark.nat = \"external\"",
        )
        .await;
        Office::well(&office.says("translation").await);
        sh("nft delete table ip n");
        finds(
            &office.says("translation").await,
            State::Wrong,
            "nothing on this box translates",
        );
    });
}

#[test]
fn a_box_that_is_not_for_redirect_is_named() {
    in_namespace(async || {
        let lines = "mode = \"redirect\"";
        let mut office = Office::with("", lines).await;
        finds(
            &office.says("redirect-mode").await,
            State::Wrong,
            "10.1.0.0/24",
        );
        office.config.lans[0].sources = vec!["198.51.100.0/24".parse().unwrap()];
        Office::well(&office.says("redirect-mode").await);
        sh("nft add table inet f
            nft 'add chain inet f forward { type filter hook forward priority 0; policy drop; }'");
        finds(
            &office.says("redirect-mode").await,
            State::Wrong,
            "inet f forward",
        );
    });
}

const FIREWALL: &str = "
    nft add table inet f
    nft 'add chain inet f forward { type filter hook forward priority 0; policy drop; }'
    nft add rule inet f forward ct state established,related accept
    nft add rule inet f forward iifname lan0 oifname bb0 accept";

#[test]
fn a_forward_policy_that_drops_grants_is_proved_by_connections() {
    in_namespace(async || {
        let office = Office::open().await;
        finds(
            &office.says("forward-policy").await,
            State::Ok,
            "nothing filters",
        );
        sh(FIREWALL);
        let findings = diagnose(&office.examine().await);
        let wrong: Vec<_> = findings
            .iter()
            .filter(|it| it.check.name == "forward-policy" && it.state == State::Wrong)
            .collect();
        assert_eq!(wrong.len(), 1, "{wrong:#?}");
        for flow in [
            "TCP 10.1.",
            "UDP 10.1.",
            "TCP 2001:db8:1:",
            "UDP 2001:db8:1:",
        ] {
            assert!(wrong[0].found.contains(flow), "{wrong:#?}");
        }
        let remedy = wrong[0].remedy.as_ref().unwrap();
        assert_eq!(
            remedy,
            "nft insert rule inet f forward iifname \"lan0\" oifname \"brk0\" accept"
        );
        sh(remedy);
        finds(&office.says("forward-policy").await, State::Ok, "proved");

        // Half a firewall is found half.
        sh("nft insert rule inet f forward iifname lan0 udp dport 3478 drop");
        let said = office.says("forward-policy").await;
        finds(&said, State::Wrong, "stops UDP 10.1.");
        assert!(!said.iter().any(|it| it.1.contains("TCP")), "{said:#?}");
    });
}

#[test]
fn the_proof_goes_through_our_own_table_while_steer_steers() {
    in_namespace(async || {
        let office = Office::open().await;
        sh(FIREWALL);
        office.steer().await;
        finds(
            &office.says("forward-policy").await,
            State::Wrong,
            "stops TCP 10.1.",
        );
        sh("nft insert rule inet f forward iifname lan0 accept");
        finds(&office.says("forward-policy").await, State::Ok, "proved");
        // What is wrong with our own table is not the firewall's fault.
        sh("nft flush chain inet steer nat");
        finds(&office.says("forward-policy").await, State::Ok, "proved");
        finds(&office.says("objects").await, State::Wrong, "altered");
    });
}

#[test]
fn each_lan_is_proved_by_itself() {
    in_namespace(async || {
        link("lan1");
        let office = Office::with(
            "ip addr add 10.2.0.1/24 dev lan1",
            "lan = [{ interface = \"lan1\" }, { interface = \"lan0\" }]",
        )
        .await;
        sh(FIREWALL);
        sh("nft insert rule inet f forward iifname lan1 accept");
        let said = office.says("forward-policy").await;
        finds(&said, State::Wrong, "TCP 10.1.0.254 (lan0)");
        assert!(!said.iter().any(|it| it.1.contains("(lan1)")), "{said:#?}");
    });
}

#[test]
fn nothing_is_said_to_be_well_that_was_not_looked_at() {
    in_namespace(async || {
        let office = Office::open().await;
        sh("ip link del lan0");
        let mut patient = office.examine().await;
        patient.owners = Err("Operation not permitted".into());
        let spoke: BTreeSet<_> = diagnose(&patient).iter().map(|it| it.check.name).collect();
        for silent in [
            "offloads",
            "mtu",
            "breakouts",
            "ipv6",
            "rules",
            "xdp",
            "tc-programs",
            "flow-tables",
            "translation",
            "forward-policy",
            "attachments",
            "objects",
        ] {
            assert!(!spoke.contains(silent), "{silent}");
        }
        finds(&said(&patient, "lan"), State::Wrong, "lan0");
        finds(&said(&patient, "nftables"), State::Ok, "not known");
    });
}

#[test]
fn what_cannot_be_read_is_said() {
    changed(
        "marks",
        |it| it.owners = Err("Operation not permitted".into()),
        State::Wrong,
        "cannot be read",
    );
}

#[test]
fn what_cannot_be_proved_is_said() {
    in_namespace(async || {
        let office = Office::open().await;
        sh(FIREWALL);
        let mut patient = office.examine().await;
        for proof in &mut patient.proofs {
            proof.outcome = Outcome::Unproved("the copy does not load".into());
        }
        finds(
            &said(&patient, "forward-policy"),
            State::Note,
            "not proved (the copy does not load): read whether inet f forward",
        );
        patient.proofs.clear();
        finds(&said(&patient, "forward-policy"), State::Note, "not proved");
    });
}

#[test]
fn services_that_delete_rules_of_others_are_named() {
    in_namespace(async || {
        let office = Office::open().await;
        Office::well(&office.says("managers").await);
        let at = |path: &str, text: &str| {
            let path = office.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        at("run/systemd/netif/state", "");
        finds(
            &office.says("managers").await,
            State::Note,
            "systemd-networkd",
        );
        at(
            "usr/lib/systemd/networkd.conf.d/10-x.conf",
            "[Network]\nManageForeignRoutes=no\n",
        );
        at(
            "etc/systemd/networkd.conf.d/steer.conf",
            "[Network]\nManageForeignRoutingPolicyRules = no\n",
        );
        Office::well(&office.says("managers").await);
        // A later file wins.
        at(
            "run/systemd/networkd.conf.d/zz.conf",
            "[Network]\nManageForeignRoutingPolicyRules=yes\n",
        );
        finds(
            &office.says("managers").await,
            State::Note,
            "systemd-networkd",
        );
        let mut patient = office.examine().await;
        patient.managers = vec![Manager::DesktopNetwork];
        finds(&said(&patient, "managers"), State::Note, "NetworkManager");
        patient.managers.clear();
        Office::well(&said(&patient, "managers"));
        at("etc/nftables.conf", "#!/usr/sbin/nft -f\nflush ruleset\n");
        at(
            "etc/systemd/system/sysinit.target.wants/nftables.service",
            "",
        );
        let found = office.examine().await.managers;
        assert!(found.contains(&Manager::FlushingNftables), "{found:?}");
    });
}

#[test]
fn a_full_connection_table_is_named() {
    let filled = |entries| move |it: &mut Patient| it.conntrack = Some(Usage { entries, max: 100 });
    changed("conntrack", filled(61), State::Note, "61 of 100");
    changed("conntrack", filled(86), State::Wrong, "86 of 100");
    changed("conntrack", filled(60), State::Ok, "60 of 100");
}

#[test]
fn a_clock_that_cannot_be_right_is_named() {
    changed(
        "clock",
        |it| it.now = std::time::UNIX_EPOCH,
        State::Wrong,
        "1970-01-01T00:00:00Z is before",
    );
    changed(
        "clock",
        |it| it.now = it.built.unwrap() + Duration::from_hours(21 * 365 * 24),
        State::Wrong,
        "decades",
    );
}

#[test]
fn resolvers_that_do_not_answer_are_named() {
    in_namespace(async || {
        let office = Office::open().await;
        Office::well(&office.says("dns").await);
        let resolvers = |text: &str| fs::write(office.root.path().join("etc/resolv.conf"), text);
        resolvers("nameserver 127.0.0.9\nnameserver 127.0.0.1\n").unwrap();
        finds(&office.says("dns").await, State::Note, "127.0.0.9 (by lo)");
        resolvers("nameserver 127.0.0.9\n").unwrap();
        finds(
            &office.says("dns").await,
            State::Wrong,
            "127.0.0.9 (by lo) does not answer",
        );
        resolvers("").unwrap();
        finds(&office.says("dns").await, State::Note, "no resolver");
    });
}

#[test]
fn clients_that_ask_past_the_resolver_are_named() {
    in_namespace(async || {
        let mut office = Office::open().await;
        assert_eq!(office.says("bypass").await, [], "no query is steered");
        office.config.select.names.steer = true;
        Office::well(&office.says("bypass").await);
        // A client and a resolver that are somewhere else, as far as the router's addresses go.
        sh(
            "ip route add local 10.1.0.7 dev lo; ip route add local 8.8.8.8 dev lo
            nft 'table inet t { chain c { type filter hook input priority 0; ct state new; }; }'",
        );
        let resolver = UdpSocket::bind("8.8.8.8:853").await.unwrap();
        let client = UdpSocket::bind("10.1.0.7:0").await.unwrap();
        client.connect("8.8.8.8:853").await.unwrap();
        client.send(b"?").await.unwrap();
        let mut question = [0; 8];
        let (_, from) = resolver.recv_from(&mut question).await.unwrap();
        Office::well(&office.says("bypass").await);
        resolver.send_to(b"!", from).await.unwrap();
        finds(
            &office.says("bypass").await,
            State::Note,
            "8.8.8.8 (Google) over TLS by 10.1.0.7",
        );
    });
}

#[test]
fn steer_without_a_controller_is_named() {
    in_namespace(async || {
        let office = Office::open().await;
        finds(&office.says("controller").await, State::Note, "not running");
        office.steer().await;
        let mut patient = office.examine().await;
        finds(
            &said(&patient, "controller"),
            State::Wrong,
            "steer on alone",
        );
        patient.controller = Some(7);
        Office::well(&said(&patient, "controller"));
    });
}

#[test]
fn a_missing_program_is_named() {
    in_namespace(async || {
        let office = Office::open().await;
        office.steer().await;
        Office::well(&office.says("attachments").await);
        let mut patient = office.examine().await;
        patient.ports[0].tcx = Some(vec!["foreign_tcx".into()]);
        finds(
            &said(&patient, "attachments"),
            State::Wrong,
            "not attached to lan0",
        );
    });
}

#[test]
fn absent_and_altered_objects_are_named_and_put_back() {
    in_namespace(async || {
        let office = Office::open().await;
        finds(
            &office.says("objects").await,
            State::Note,
            "`steer run` puts them there",
        );
        office.steer().await;
        Office::well(&office.says("objects").await);
        sh(
            "ip rule del pref 601; nft insert rule inet steer post accept
            echo 0 > /proc/sys/net/ipv4/conf/brk0/ignore_routes_with_linkdown",
        );
        let patient = office.examine().await;
        let said = said(&patient, "objects");
        finds(&said, State::Wrong, "pref 601");
        finds(&said, State::Wrong, "altered");
        assert_eq!(said.len(), 3, "{said:#?}");
        let fixes: Vec<Fix> = diagnose(&patient)
            .into_iter()
            .filter(|it| it.check.name == "objects")
            .filter_map(|it| it.fix)
            .collect();
        // While a controller runs, it is left to the controller.
        let lock = crate::controller::Lock::take(&office.config.system.run_dir).unwrap();
        let done = fix(&office.config, &fixes).await;
        assert!(done.iter().all(Result::is_err), "{done:?}");
        drop(lock);
        let done = fix(&office.config, &fixes).await;
        assert!(
            done.len() == 3 && done.iter().all(Result::is_ok),
            "{done:?}"
        );
        Office::well(&office.says("objects").await);
    });
}

#[test]
fn objects_that_are_not_needed_are_named() {
    in_namespace(async || {
        let office = Office::open().await;
        office.steer().await;
        Office::well(&office.says("leftovers").await);
        sh("ip route add default via 192.0.2.7 dev brk0 table 36507 proto 86");
        finds(&office.says("leftovers").await, State::Note, "36507");
    });
}

#[test]
fn every_check_has_a_name_of_its_own_a_test_and_stands_with_its_area() {
    let names: BTreeSet<_> = CHECKS.iter().map(|it| it.name).collect();
    assert_eq!(names.len(), CHECKS.len());
    // A new check comes with a test that provokes it.
    let tests = include_str!("tests.rs");
    for name in names {
        assert!(tests.contains(&format!("\"{name}\"")), "{name}");
    }
    let mut areas: Vec<Area> = CHECKS.iter().map(|it| it.area).collect();
    areas.dedup();
    assert_eq!(areas.len(), 6, "{areas:?}");
}

#[test]
fn the_page_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/doctor.md");
    if std::env::var_os("STEER_WRITE_DOCS").is_some() {
        fs::write(path, page()).unwrap();
    }
    assert!(
        fs::read_to_string(path).is_ok_and(|text| text == page()),
        "docs/doctor.md differs from the code: STEER_WRITE_DOCS=1 cargo test -p steer-user the_page"
    );
}
