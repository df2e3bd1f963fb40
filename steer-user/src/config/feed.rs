//! `[feed]`: where the endpoint list comes from, and how newer ones come into use.

use std::{
    ops::Range,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use hyper::Uri;
use serde::Deserialize;
use toml::Spanned;

use super::{
    Breakout,
    checker::Checker,
    values::{Number, Text},
};
use crate::endpoints::{
    Access, FOLDER, Guards, Hooks, Instance, MICROSOFT, Policy, Rules, Service, ServiceArea, SetId,
    Signer,
};

/// Where the endpoint list comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedConfig {
    /// A file in the web service's JSON, the list to start with; none: the snapshot in the binary. A
    /// relative path in the configuration is relative to the configuration file.
    pub file: Option<PathBuf>,
    /// The cloud whose list it is.
    pub instance: Instance,
    /// The web service.
    pub service: Service,
    /// The breakout that it is asked over, by name; none: as the kernel routes.
    pub via: Option<String>,
    /// How often it is asked; an hour at least, except a mirror.
    pub interval: Duration,
    /// How answers come into use.
    pub rules: Rules,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFeed {
    pub file: Option<Text>,
    pub instance: Option<Text>,
    update: Option<Text>,
    url: Option<Text>,
    interval: Option<Text>,
    timeout: Option<Text>,
    via: Option<Text>,
    proxy: Option<Text>,
    ca_file: Option<Text>,
    public_key: Option<Text>,
    tenant: Option<Text>,
    #[serde(default)]
    areas: Vec<Text>,
    ipv6: Option<bool>,
    removal_delay: Option<Text>,
    keep: Option<Number>,
    #[serde(default)]
    guards: RawGuards,
    #[serde(default)]
    hooks: RawHooks,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGuards {
    required_sets: Option<Vec<Number>>,
    shrink: Option<Number>,
    growth: Option<Number>,
    widest_v4: Option<Number>,
    widest_v6: Option<Number>,
    #[serde(default)]
    deny: Vec<Text>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHooks {
    #[serde(default)]
    before: Vec<String>,
    #[serde(default)]
    after: Vec<String>,
    timeout: Option<Text>,
}

impl RawFeed {
    /// Where `via` is written.
    pub(super) fn via_span(&self) -> Option<Range<usize>> {
        self.via.as_ref().map(Spanned::span)
    }
}

const INTERVAL: Duration = Duration::from_hours(1);
const TIMEOUT: Duration = Duration::from_mins(1);
const REMOVAL_DELAY: Duration = Duration::from_hours(30 * 24);
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// The Optimize sets of Worldwide, and whose they are.
const REQUIRED: [(u16, ServiceArea); 3] = [
    (1, ServiceArea::Exchange),
    (11, ServiceArea::Skype),
    (31, ServiceArea::SharePoint),
];
const YEAR: Duration = Duration::from_hours(366 * 24);

impl Checker<'_> {
    /// Gives the service the interface of the breakout that `via` names.
    pub(super) fn feed_goes_via(
        &mut self,
        feed: &mut FeedConfig,
        span: Option<Range<usize>>,
        breakouts: &[Breakout],
    ) {
        let (Some(via), Some(span)) = (&feed.via, span) else {
            return;
        };
        match breakouts.iter().find(|it| it.name == *via) {
            Some(breakout) => feed.service.access.device = Some(breakout.interface.to_string()),
            None => self.wrong(
                span,
                format!("{via:?} is no breakout"),
                "write the name of a [[breakout]], or leave the key out",
            ),
        }
    }

    pub(super) fn feed(&mut self, raw: RawFeed) -> FeedConfig {
        let file = raw.file.and_then(|file| {
            if file.get_ref().is_empty() {
                self.wrong(
                    file.span(),
                    "is empty",
                    "name a file, or leave the key out for the built-in snapshot",
                );
                return None;
            }
            Some(PathBuf::from(file.into_inner()))
        });
        let words = Instance::ALL.map(|instance| (instance.as_str(), instance));
        let span = raw.instance.as_ref().map(Spanned::span);
        let instance = self.one_of(raw.instance, &words, Instance::default());
        if let (Some(span), None) = (span, &file)
            && instance != Instance::Worldwide
        {
            self.wrong(
                span,
                format!("the built-in snapshot is Worldwide's, not {instance}'s"),
                "fetch that instance's list and name it as feed.file",
            );
        }
        let policies = Policy::ALL.map(|policy| (policy.as_str(), policy));
        let policy = self.one_of(raw.update, &policies, Policy::default());
        let url = raw.url.as_ref().map(Spanned::span);
        let base = raw.url.map(|url| self.mirror(&url));
        let mirrored = base.is_some();
        let period = |checker: &mut Self, text: Option<Text>, least, default| {
            text.map_or(default, |text| checker.period(&text, least, default))
        };
        let least = if mirrored {
            Duration::from_millis(10)
        } else {
            INTERVAL
        };
        let interval = period(self, raw.interval, least, INTERVAL);
        let signer = raw.public_key.and_then(|text| {
            if !mirrored {
                let reason = "stands without `url`: Microsoft signs no lists";
                self.wrong(
                    text.span(),
                    reason,
                    "name the mirror whose lists are signed",
                );
            }
            self.parsed::<Signer>(
                &text,
                "copy the second line of the .pub file that `minisign -G` wrote",
            )
        });
        if let (Some(span), Some(base), None) = (url, &base, &signer)
            && base.starts_with(FOLDER)
        {
            let reason = "is a folder, which is only believed when it is signed";
            let remedy = "add `public_key`; docs/feed.md says how lists are signed";
            self.wrong(span, reason, remedy);
        }
        let service = Service {
            base: base.unwrap_or_else(|| MICROSOFT.into()),
            instance,
            tenant: raw.tenant.map(|text| self.tenant(text)),
            areas: self.words::<ServiceArea>(raw.areas).into_iter().collect(),
            ipv6: raw.ipv6.unwrap_or(true),
            access: Access {
                device: None,
                proxy: raw.proxy.map(|url| self.url(&url, "http")),
                ca_file: raw
                    .ca_file
                    .map(|file| self.folder(Some(file), "/etc/ssl/mirror.pem")),
                timeout: period(self, raw.timeout, Duration::from_millis(10), TIMEOUT),
            },
            signer,
        };
        let rules = Rules {
            policy,
            guards: self.guards(raw.guards, instance, &service.areas),
            removal_delay: period(self, raw.removal_delay, Duration::ZERO, REMOVAL_DELAY),
            keep: usize::from(self.number_or(raw.keep, 1..=1000, 20)),
            hooks: Hooks {
                before: raw.hooks.before,
                after: raw.hooks.after,
                timeout: period(
                    self,
                    raw.hooks.timeout,
                    Duration::from_millis(10),
                    HOOK_TIMEOUT,
                ),
            },
        };
        FeedConfig {
            file,
            instance,
            service,
            via: raw.via.map(|text| self.name(text)),
            interval,
            rules,
        }
    }

    /// `areas`: those that are asked for, none for all.
    fn guards(&mut self, raw: RawGuards, instance: Instance, areas: &[ServiceArea]) -> Guards {
        let asked_for = |area: &ServiceArea| areas.is_empty() || areas.contains(area);
        let required = match raw.required_sets {
            None if instance == Instance::Worldwide => {
                let there = REQUIRED.iter().filter(|(_, area)| asked_for(area));
                there.map(|(id, _)| SetId(*id)).collect()
            }
            None => [].into(),
            Some(list) => {
                let ids = list
                    .into_iter()
                    .map(|id| SetId(self.number_or(Some(id), 1..=u16::MAX, 1)));
                ids.collect()
            }
        };
        let narrow = |it: u16| u8::try_from(it).unwrap_or(u8::MAX);
        Guards {
            required,
            shrink: self.number_or(raw.shrink, 0..=100, 30),
            growth: self.number_or(raw.growth, 0..=10_000, 100),
            widest_v4: narrow(self.number_or(raw.widest_v4, 8..=32, 10)),
            widest_v6: narrow(self.number_or(raw.widest_v6, 16..=128, 24)),
            deny: self.prefixes(raw.deny),
        }
    }

    fn number_or(
        &mut self,
        raw: Option<Number>,
        range: std::ops::RangeInclusive<u16>,
        default: u16,
    ) -> u16 {
        let Some(raw) = raw else { return default };
        let number = u16::try_from(*raw.get_ref())
            .ok()
            .filter(|it| range.contains(it));
        number.unwrap_or_else(|| {
            let reason = format!(
                "{} is not a number of {} to {}",
                raw.get_ref(),
                range.start(),
                range.end()
            );
            self.wrong(raw.span(), reason, "correct the number");
            default
        })
    }

    pub(super) fn period(&mut self, text: &Text, least: Duration, default: Duration) -> Duration {
        let shown = humantime::format_duration(least);
        match text.get_ref().parse::<humantime::Duration>() {
            Ok(period) if (least..=YEAR).contains(&*period) => *period,
            Ok(_) => {
                let reason = format!("{:?} is not between {shown} and a year", text.get_ref());
                self.wrong(text.span(), reason, "Microsoft's service is asked once an hour at most; a mirror (url) may be asked more often");
                default
            }
            Err(error) => {
                let reason = format!("{:?} is no duration: {error}", text.get_ref());
                self.wrong(text.span(), reason, "write one such as \"1h\" or \"30d\"");
                default
            }
        }
    }

    /// A mirror behind HTTPS, or one that is a folder; without a slash at its end.
    fn mirror(&mut self, text: &Text) -> String {
        if let Some(path) = text.get_ref().strip_prefix(FOLDER) {
            let odd = Path::new(path)
                .components()
                .any(|it| it == Component::ParentDir);
            if !path.starts_with('/') || odd {
                let reason = format!("{:?} is no folder's address", text.get_ref());
                self.wrong(
                    text.span(),
                    reason,
                    "write one such as \"file:///var/lib/m365\"",
                );
            }
            return format!("{FOLDER}{}", path.trim_end_matches('/'));
        }
        let url = self.url(text, "https");
        url.to_string().trim_end_matches('/').to_owned()
    }

    pub(super) fn url(&mut self, text: &Text, scheme: &str) -> Uri {
        match text.get_ref().parse::<Uri>() {
            Ok(url)
                if url.scheme_str() == Some(scheme)
                    && url.host().is_some()
                    && url.query().is_none() =>
            {
                url
            }
            _ => {
                let reason = format!(
                    "{:?} is no address that begins with {scheme}://",
                    text.get_ref()
                );
                self.wrong(
                    text.span(),
                    reason,
                    format!("write one such as \"{scheme}://server.example:8443\""),
                );
                Uri::default()
            }
        }
    }

    fn tenant(&mut self, text: Text) -> String {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if text.get_ref().is_empty() || !text.get_ref().bytes().all(allowed) {
            let reason = format!("{:?} is no tenant", text.get_ref());
            self.wrong(
                text.span(),
                reason,
                "write the word before .onmicrosoft.com",
            );
        }
        text.into_inner()
    }
}
