//! `[health]`: what is probed over each breakout, when one is called down or degraded, and what
//! happens to flows then.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Mode,
    checker::Checker,
    values::{Number, Text},
};

/// The standard port of a probe over TLS.
const TLS_PORT: u16 = 443;
/// The standard port of a STUN probe: Teams media.
const STUN_PORT: u16 = 3478;
/// More targets than this find nothing out that fewer do not.
const MAX_TARGETS: usize = 16;

/// How breakouts are watched, and what their states mean.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthConfig {
    /// Whether anything is probed. Without probes a breakout is up while its link, its address and
    /// its gateway are there.
    pub probes: bool,
    /// What is probed; empty: front doors out of the endpoint list.
    pub targets: Vec<Target>,
    /// How often each target is probed, 200 ms to 1 h; a breakout may have its own.
    pub interval: Duration,
    /// How many targets must answer; none: half of them, rounded up.
    pub quorum: Option<u8>,
    /// So many rounds without a quorum take a breakout down, 1 to 20.
    pub down_after: u8,
    /// So many rounds with one are needed before it is up again, 1 to 100.
    pub up_after: u8,
    /// How long it must answer before it is up again; doubled when it goes down again soon.
    pub hold: Duration,
    /// What doubling ends at.
    pub max_hold: Duration,
    /// Above this it is degraded: the share of probes that got no answer, 0.0 to 1.0.
    pub loss: f64,
    /// Above this it is degraded: the smoothed time to an answer.
    pub latency: Duration,
    /// Above this it is degraded: the smoothed deviation from that time.
    pub jitter: Duration,
    /// What a degraded breakout means for new flows.
    pub when_degraded: WhenDegraded,
    /// What becomes of the flows of a breakout that goes down.
    pub on_path_loss: OnPathLoss,
    /// Whether a front door's certificate must be one of its set's.
    pub identity: Identity,
    /// A file of more certificates (PEM) that are trusted, besides the system's.
    pub trust: Option<PathBuf>,
}

/// Something that answers probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// How it is asked.
    pub kind: ProbeKind,
    /// Where.
    pub address: SocketAddr,
    /// Names of which its certificate must hold one, the one to ask for first; empty: any will do.
    pub names: Vec<String>,
}

/// How a target is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// TCP, and at times a TLS handshake.
    Tls,
    /// A STUN binding request over UDP.
    Stun,
}

/// What a breakout that is down means for new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenDown {
    /// They take the next breakout, or the backbone when there is none.
    #[default]
    Next,
    /// They take the backbone, even where another breakout of lower rank is up.
    Backbone,
    /// They are held to it, though probes get no answer; the backbone is not for them.
    Hold,
}

/// What a degraded breakout means for new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenDegraded {
    /// They take another breakout that is up, and stay when there is none.
    #[default]
    Next,
    /// Nothing: it is taken as if it was up.
    Keep,
    /// They take another breakout that is up, or the backbone.
    Backbone,
}

/// What becomes of the flows of a breakout that goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnPathLoss {
    /// They live on if the breakout comes back in time, or die of their own timeouts.
    #[default]
    Keep,
    /// Their connection-tracking entries are deleted: clients hear of it with their next packet.
    Reset,
}

/// How much of a front door's certificate is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Identity {
    /// It must be issued by a trusted authority for a name of the target's set.
    #[default]
    Verify,
    /// A TLS answer is enough.
    Any,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            probes: true,
            targets: Vec::new(),
            interval: Duration::from_secs(1),
            quorum: None,
            down_after: 3,
            up_after: 5,
            hold: Duration::from_secs(30),
            max_hold: Duration::from_mins(5),
            loss: 0.05,
            latency: Duration::from_millis(300),
            jitter: Duration::from_millis(100),
            when_degraded: WhenDegraded::default(),
            on_path_loss: OnPathLoss::default(),
            identity: Identity::default(),
            trust: None,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHealth {
    probes: Option<Text>,
    targets: Option<RawTargets>,
    interval: Option<Text>,
    quorum: Option<Number>,
    down_after: Option<Number>,
    up_after: Option<Number>,
    hold: Option<Text>,
    max_hold: Option<Text>,
    loss_percent: Option<Number>,
    latency: Option<Text>,
    jitter: Option<Text>,
    when_degraded: Option<Text>,
    on_path_loss: Option<Text>,
    identity: Option<Text>,
    trust: Option<Text>,
}

pub(super) type RawTargets = Spanned<Vec<Spanned<RawTarget>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTarget {
    tls: Option<Text>,
    stun: Option<Text>,
    name: Option<Text>,
}

/// Above which a breakout is degraded.
pub(super) struct RawThresholds {
    pub loss_percent: Option<Number>,
    pub latency: Option<Text>,
    pub jitter: Option<Text>,
}

impl RawThresholds {
    /// Whether one of them is written.
    pub fn is_any(&self) -> bool {
        self.loss_percent.is_some() || self.latency.is_some() || self.jitter.is_some()
    }
}

/// The longest time that a key of this section may have.
const LONGEST: Duration = Duration::from_hours(1);

impl Checker<'_> {
    pub(super) fn health(&mut self, raw: RawHealth, mode: Mode) -> HealthConfig {
        let default = HealthConfig::default();
        let targets = raw.targets.map_or(Vec::new(), |list| self.targets(list));
        let quorum = raw.quorum.map(|number| {
            let most = u8::try_from(targets.len()).unwrap_or(u8::MAX);
            let most = if most == 0 { 16 } else { most };
            self.number(&number, 1..=most, 1)
        });
        let within = |it: &mut Self, text: Option<Text>, least, default| {
            text.map_or(default, |text| {
                it.duration_within(&text, least, LONGEST, default)
            })
        };
        let hold = within(self, raw.hold, Duration::ZERO, default.hold);
        let span = raw.max_hold.as_ref().map(Spanned::span);
        let mut max_hold = within(
            self,
            raw.max_hold,
            Duration::ZERO,
            default.max_hold.max(hold),
        );
        if let Some(span) = span
            && max_hold < hold
        {
            self.wrong(span, "is shorter than hold", "write at least as much");
            max_hold = hold;
        }
        let thresholds = RawThresholds {
            loss_percent: raw.loss_percent,
            latency: raw.latency,
            jitter: raw.jitter,
        };
        HealthConfig {
            probes: self.one_of(raw.probes, &[("on", true), ("off", false)], default.probes),
            targets,
            interval: raw
                .interval
                .map_or(default.interval, |text| self.probe_interval(&text)),
            quorum,
            down_after: raw
                .down_after
                .map_or(default.down_after, |it| self.number(&it, 1..=20, 3)),
            up_after: raw
                .up_after
                .map_or(default.up_after, |it| self.number(&it, 1..=100, 5)),
            hold,
            max_hold,
            when_degraded: self.when_degraded(raw.when_degraded, default.when_degraded),
            on_path_loss: self.on_path_loss(raw.on_path_loss, mode),
            identity: self.one_of(
                raw.identity,
                &[("verify", Identity::Verify), ("any", Identity::Any)],
                default.identity,
            ),
            trust: raw
                .trust
                .map(|text| self.folder(Some(text), "/etc/steer/trust.pem")),
            ..self.thresholds(thresholds, &default)
        }
    }

    /// `like`, with these thresholds.
    pub(super) fn thresholds(&mut self, raw: RawThresholds, like: &HealthConfig) -> HealthConfig {
        let within = |it: &mut Self, text: Option<Text>, default| {
            text.map_or(default, |text| {
                it.duration_within(&text, Duration::from_millis(1), LONGEST, default)
            })
        };
        HealthConfig {
            loss: raw.loss_percent.map_or(like.loss, |it| {
                f64::from(self.number(&it, 1..=100, 5)) / 100.0
            }),
            latency: within(self, raw.latency, like.latency),
            jitter: within(self, raw.jitter, like.jitter),
            ..like.clone()
        }
    }

    /// `when_degraded`.
    pub(super) fn when_degraded(
        &mut self,
        text: Option<Text>,
        default: WhenDegraded,
    ) -> WhenDegraded {
        let words = [
            ("next", WhenDegraded::Next),
            ("keep", WhenDegraded::Keep),
            ("backbone", WhenDegraded::Backbone),
        ];
        self.one_of(text, &words, default)
    }

    /// `on_path_loss`. Redirect mode's flows are where its table says, and nobody could delete them.
    fn on_path_loss(&mut self, text: Option<Text>, mode: Mode) -> OnPathLoss {
        let span = text.as_ref().map(Text::span);
        let words = [("keep", OnPathLoss::Keep), ("reset", OnPathLoss::Reset)];
        let chosen = self.one_of(text, &words, OnPathLoss::default());
        if let (Some(span), Mode::Redirect, OnPathLoss::Reset) = (span, mode, chosen) {
            self.wrong(
                span,
                "\"reset\" needs mode = \"mark\"",
                "choose another word, or leave the key out",
            );
        }
        chosen
    }

    /// `[[breakout]] when_down`.
    pub(super) fn when_down(&mut self, text: Option<Text>) -> WhenDown {
        let words = [
            ("next", WhenDown::Next),
            ("backbone", WhenDown::Backbone),
            ("hold", WhenDown::Hold),
        ];
        self.one_of(text, &words, WhenDown::default())
    }

    /// `interval`, `[[breakout]] probe_interval`.
    pub(super) fn probe_interval(&mut self, text: &Text) -> Duration {
        let default = HealthConfig::default().interval;
        self.duration_within(
            text,
            Duration::from_millis(200),
            Duration::from_hours(1),
            default,
        )
    }

    pub(super) fn targets(&mut self, list: RawTargets) -> Vec<Target> {
        if list.get_ref().len() > MAX_TARGETS {
            self.wrong(
                list.span(),
                format!("names more than {MAX_TARGETS} targets"),
                "three to five tell as much",
            );
        }
        let mut targets: Vec<Target> = Vec::new();
        for raw in list.into_inner() {
            let span = raw.span();
            let RawTarget { tls, stun, name } = raw.into_inner();
            let (kind, text, port) = match (tls, stun) {
                (Some(text), None) => (ProbeKind::Tls, text, TLS_PORT),
                (None, Some(text)) => (ProbeKind::Stun, text, STUN_PORT),
                _ => {
                    self.wrong(
                        span,
                        "is no target",
                        "write { tls = \"ADDRESS\", name = \"outlook.office365.com\" } or { stun = \"ADDRESS\" }",
                    );
                    continue;
                }
            };
            let Some(address) = self.socket_address(&text, port) else {
                continue;
            };
            let names: Vec<String> = name
                .iter()
                .filter_map(|name| self.host_name(name))
                .collect();
            if targets
                .iter()
                .any(|it| (it.kind, it.address) == (kind, address))
            {
                self.wrong(text.span(), "is there twice", "write it once");
            }
            targets.push(Target {
                kind,
                address,
                names,
            });
        }
        targets
    }

    fn socket_address(&mut self, text: &Text, port: u16) -> Option<SocketAddr> {
        let address = text
            .get_ref()
            .parse::<IpAddr>()
            .map(|address| SocketAddr::new(address, port))
            .or_else(|_| text.get_ref().parse());
        match address {
            Ok(address) if address.port() != 0 && !address.ip().is_unspecified() => Some(address),
            _ => {
                self.wrong(
                    text.span(),
                    format!("{:?} is no address", text.get_ref()),
                    "write one such as \"13.107.6.152\", \"13.107.6.152:443\" or \"[2620:1ec:4::152]:443\"",
                );
                None
            }
        }
    }

    fn host_name(&mut self, text: &Text) -> Option<String> {
        let name = text.get_ref();
        if rustls_pki_types::DnsName::try_from(name.as_str()).is_ok() {
            return Some(name.clone());
        }
        self.wrong(
            text.span(),
            format!("{name:?} is no host name"),
            "write one such as \"outlook.office365.com\"",
        );
        None
    }

    fn number(&mut self, number: &Number, range: std::ops::RangeInclusive<u8>, default: u8) -> u8 {
        match u8::try_from(*number.get_ref()) {
            Ok(value) if range.contains(&value) => value,
            _ => {
                let reason = format!("{} is out of range", number.get_ref());
                let remedy = format!("write {} to {}", range.start(), range.end());
                self.wrong(number.span(), reason, remedy);
                default
            }
        }
    }

    fn duration_within(
        &mut self,
        text: &Text,
        least: Duration,
        most: Duration,
        default: Duration,
    ) -> Duration {
        let shown = |duration| humantime::format_duration(duration).to_string();
        match text.get_ref().parse::<humantime::Duration>() {
            Ok(value) if (least..=most).contains(&*value) => *value,
            Ok(_) => {
                let reason = format!("{} is out of range", text.get_ref());
                let remedy = format!("write {} to {}", shown(least), shown(most));
                self.wrong(text.span(), reason, remedy);
                default
            }
            Err(error) => {
                let reason = format!("{:?} is no duration: {error}", text.get_ref());
                let remedy = format!("write one such as {:?}", shown(default));
                self.wrong(text.span(), reason, remedy);
                default
            }
        }
    }
}
