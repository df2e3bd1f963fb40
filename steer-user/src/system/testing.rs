//! A network namespace for one test: made for it, gone with its thread, so that tests run side by
//! side and leave nothing behind. Needs root, and says so.

use std::{future::Future, process::Command, thread};

use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a network namespace of its own. A panic inside fails the test.
pub fn in_namespace<F, T>(test: F)
where
    F: FnOnce() -> T + Send + 'static,
    T: Future<Output = ()>,
{
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests of the system need root");
        sh("ip link set lo up");
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a command line; returns what it printed. It must succeed.
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{line}` failed: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes an Ethernet device that is up and has a carrier; its other end is called `NAME-p`. Neither
/// gets addresses of its own, so that nothing changes by itself.
pub fn link(name: &str) {
    sh(&format!(
        "ip link add name '{name}' type veth peer name '{name}-p'
         ip link set '{name}' addrgenmode none; ip link set '{name}-p' addrgenmode none
         ip link set '{name}' up; ip link set '{name}-p' up
         # The kernel tells the routes of the carrier a little later.
         for end in '{name}' '{name}-p'; do
             until ip -o link show dev \"$end\" | grep -q 'state UP'; do sleep 0.01; done
         done"
    ));
}

/// Fails with the lines that only one of the texts has.
#[track_caller]
pub fn assert_same(now: &str, before: &str) {
    if now == before {
        return;
    }
    let only = |a: &str, b: &str| -> Vec<String> {
        let b: Vec<_> = b.lines().collect();
        a.lines()
            .filter(|l| !b.contains(l))
            .map(str::to_owned)
            .collect()
    };
    panic!(
        "before: {:#?}\nnow: {:#?}",
        only(before, now),
        only(now, before)
    );
}

/// The other end of a device, in a namespace of its own, so that it answers for itself.
pub struct Peer(String);

impl Peer {
    /// Takes the other end of `link`, gives it this Ethernet address and these IP addresses.
    pub fn of(link: &str, mac: &str, addresses: &[&str]) -> Self {
        let namespace = format!("steer-peer-{}-{link}", nix::unistd::gettid());
        sh(&format!(
            "ip netns add {namespace}; ip link set {link}-p netns {namespace}"
        ));
        let peer = Self(namespace);
        peer.ip(&format!("link set {link}-p address {mac} up"));
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            peer.ip(&format!("addr add {address} dev {link}-p {nodad}"));
        }
        peer
    }

    /// Runs `ip` there.
    pub fn ip(&self, words: &str) {
        sh(&format!("ip -n {} {words}", self.0));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        sh(&format!("ip netns del {}", self.0));
    }
}
