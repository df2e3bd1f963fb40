//! Every kernel program loads in every variant, and decides over packets as the table says.

use std::path::PathBuf;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use steer_common::{
    abi::{NextHop, PathTable, STEERING},
    chunk::SourceKind,
    image::{Claim, Image, Order, Source},
    mark,
    rule::{self, Rule},
};
use steer_user::datapath::{Datapath, LogLevel, Mode, PinDir, Port};

struct Pins(PathBuf);
impl Drop for Pins {
    fn drop(&mut self) {
        PinDir::new(&self.0).remove().unwrap();
    }
}

#[test]
fn smoke() {
    for mode in [Mode::Mark, Mode::Redirect] {
        let dir = PathBuf::from(format!(
            "/sys/fs/bpf/steer-t{}-{mode:?}",
            std::process::id()
        ));
        let _pins = Pins(dir.clone());
        let port = Port {
            interface: "x".into(),
            ifindex: 1,
            mac: Some([2, 0, 0, 0, 0, 1]),
            vlans: vec![],
        };
        let mut datapath = Datapath::load(mode, PinDir::new(&dir), vec![port], 7, LogLevel::Off)
            .unwrap_or_else(|e| panic!("{e} {e:?}"));
        let prefix = "52.96.0.0/14".parse().unwrap();
        let image = Image::build(
            &[Claim {
                prefix,
                order: Order::new(1, &prefix, 1),
                rules: vec![Rule::steer(3, rule::TCP, 443, 443)],
            }],
            &[Source {
                prefix: "10.0.0.0/8".parse().unwrap(),
                kind: SourceKind::Client,
            }],
        )
        .unwrap();
        for n in 1..20 {
            assert_eq!(datapath.maps_mut().publish(image.clone()).unwrap(), n);
        }
        let table = PathTable {
            state: STEERING | 2,
            buckets: [1; 64],
            next_hops: [[1; 2]; mark::PATHS],
        };
        datapath.maps_mut().set_paths(&table).unwrap();
        if mode == Mode::Redirect {
            datapath
                .maps_mut()
                .set_next_hop(
                    1,
                    &NextHop {
                        macs: [9; 12],
                        device: 1,
                        mtu: 1500,
                    },
                )
                .unwrap();
            datapath.maps_mut().set_device(1, 1).unwrap();
        }
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [2, 0, 0, 0, 0, 1])
            .ipv4([10, 1, 1, 1], [52, 96, 1, 1], 64)
            .tcp(1000, 443, 1, 1000)
            .syn();
        let mut packet = Vec::new();
        builder.write(&mut packet, &[0; 20]).unwrap();
        packet[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        let ebpf = datapath.objects_mut().next().unwrap();
        let mut out = vec![0; 256];
        let mut ctx_out = vec![0_u8; 256];
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut out),
            repeat: 1,
            ..Default::default()
        };
        for (name, p) in ebpf.programs() {
            println!(
                "{name}: {:?} insns",
                p.info().unwrap().verified_instruction_count()
            );
        }
        let result = if mode == Mode::Mark {
            let program: &mut SchedClassifier =
                ebpf.program_mut("lan_ingress").unwrap().try_into().unwrap();
            program
                .test_run(TestRunOptions {
                    ctx_out: Some(&mut ctx_out),
                    ..options
                })
                .unwrap()
        } else {
            let program: &mut Xdp = ebpf
                .program_mut("lan_redirect")
                .unwrap()
                .try_into()
                .unwrap();
            program.test_run(options).unwrap()
        };
        println!(
            "{mode:?} ret {} mark {:x?} out {:x?}",
            result.return_value,
            &ctx_out[8..12],
            &out[..40]
        );
        println!(
            "{:?} {:?}",
            datapath.maps().counts().unwrap(),
            datapath.maps().reasons().unwrap()
        );
    }
}
