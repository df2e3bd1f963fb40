//! The endpoint list as change-managed input: a real `steer` asks a real HTTPS server that serves
//! versions through time, and everything that is no good list.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as the tests do")]

mod answers;
mod disk;
mod history;
mod lists;
mod management;
mod signed;

use std::{collections::BTreeSet, fs, path::PathBuf, process::Output, time::Duration};

use serde_json::{Value, json};
use steer_tests::{
    lab::Lab,
    namespace::Namespace,
    steer::{Settings, Steer, binary},
    webservice::{Reply, WebService},
};
use steer_user::endpoints::Feed;

/// Where the offices' controllers give their metrics.
const METRICS: &str = "127.0.0.1:9365";

/// A guard against hanging.
const PATIENCE: Duration = Duration::from_mins(1);

/// The built-in list as the service writes it.
fn list() -> Vec<Value> {
    let feed = Feed::builtin().unwrap();
    let set = |set: &steer_user::endpoints::EndpointSet| {
        let names: Vec<&str> = set
            .names
            .iter()
            .map(steer_user::endpoints::NamePattern::as_str)
            .collect();
        json!({
            "id": set.id.0, "serviceArea": set.service_area.as_str(),
            "category": set.category.as_str(), "required": set.required,
            "ips": set.prefixes, "urls": names,
            "tcpPorts": set.tcp.to_string(), "udpPorts": set.udp.to_string(),
        })
    };
    feed.sets.iter().map(set).collect()
}

/// The list with other prefixes of set 1.
fn edited(come: &[&str], go: &[&str]) -> Value {
    let mut list = list();
    let ips = list[0]["ips"].as_array_mut().unwrap();
    assert!(go.iter().all(|it| ips.contains(&json!(it))), "{ips:?}");
    ips.retain(|it| !go.contains(&it.as_str().unwrap()));
    ips.extend(come.iter().map(|it| json!(it)));
    Value::from(list)
}

fn serve(service: &WebService, version: &str, list: Value) {
    let version = version.to_owned();
    service.say(move |target| {
        if target.starts_with("/version/") {
            Reply::json(&json!({"instance": "Worldwide", "latest": version}))
        } else if target.starts_with("/endpoints/") {
            Reply::json(&list)
        } else {
            Reply::json(&json!([{"endpointSetId": 1, "disposition": "Change", "impact": "AddedIp",
                "version": version, "add": {"effectiveDate": "20270101", "ips": ["150.171.64.0/22"]}}]))
        }
    });
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat()
}

fn entries(list: &Value) -> BTreeSet<(u64, String)> {
    let sets = list.as_array().unwrap().iter();
    sets.flat_map(|set| {
        let id = set["id"].as_u64().unwrap();
        ["ips", "urls"]
            .into_iter()
            .flat_map(move |key| set[key].as_array().into_iter().flatten())
            .map(move |entry| (id, entry.as_str().unwrap().to_owned()))
    })
    .collect()
}

/// What a difference of steer's says came and went.
fn moved(difference: &Value) -> [BTreeSet<(u64, String)>; 2] {
    ["added", "removed"].map(|verb| {
        let sets = difference["sets"].as_array().into_iter().flatten();
        sets.flat_map(|set| {
            let id = set["id"].as_u64().unwrap();
            ["prefixes", "names"]
                .into_iter()
                .filter_map(|what| set[format!("{verb}_{what}")].as_array().cloned())
                .flatten()
                .map(move |entry| (id, entry.as_str().unwrap().to_owned()))
        })
        .collect()
    })
}

/// A namespace with a web service, and a `steer` that no controller runs beside.
struct Alone {
    namespace: Namespace,
    service: WebService,
    folder: tempfile::TempDir,
}

impl Alone {
    fn start(name: &str, feed: &str) -> Self {
        let namespace = Namespace::create(&format!("steer-{}-{name}", std::process::id())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let pem = folder.path().join("ca.pem");
        let any = "127.0.0.1:0".parse().unwrap();
        let service = WebService::start(&namespace, any, "127.0.0.1", &pem).unwrap();
        let at = folder.path().display();
        let config = format!(
            "[metrics]\nlisten = \"{METRICS}\"\n\
             [feed]\nurl = \"https://{}\"\nca_file = \"{at}/ca.pem\"\n{feed}\n\
             [[lan]]\ninterface = \"lan0\"\nsources = [\"10.0.0.0/8\"]\n\
             [[breakout]]\nname = \"fiber\"\ninterface = \"brk0\"\n\
             [system]\nstate_dir = \"{at}/state\"\nrun_dir = \"{at}/run\"\npin_dir = \"{at}/pins\"\n",
            service.address
        );
        fs::write(folder.path().join("steer.toml"), config).unwrap();
        Self {
            namespace,
            service,
            folder,
        }
    }

    fn steer(&self, arguments: &[&str], cut: Option<u32>) -> Output {
        let mut command = self.namespace.command(binary().unwrap());
        command.arg("endpoints").args(arguments);
        command
            .arg("--config")
            .arg(self.folder.path().join("steer.toml"));
        command.envs(cut.map(|point| ("STEER_CUT", format!("feed {point}"))));
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.steer(&[arguments, &["--json"]].concat(), None);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn fine(&self, arguments: &[&str]) -> String {
        let output = self.steer(arguments, None);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        text(&output)
    }

    fn refused(&self, arguments: &[&str], why: &str) {
        let output = self.steer(arguments, None);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{arguments:?}: {}",
            text(&output)
        );
        assert!(
            text(&output).contains(why),
            "{why:?} is missing in {}",
            text(&output)
        );
    }

    fn version(&self) -> Value {
        self.json(&["show"])["report"]["version"].clone()
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }
}

struct Office<'lab> {
    service: WebService,
    steer: Steer<'lab>,
}

fn office<'lab>(lab: &'lab Lab, feed: &str) -> Office<'lab> {
    let pem = lab.directory().join("ca.pem");
    let address = "192.88.99.2:9443".parse().unwrap();
    let service = WebService::start(&lab.near, address, "192.88.99.2", &pem).unwrap();
    let settings = Settings {
        more: format!(
            "[metrics]\nlisten = \"{METRICS}\"\n\
             [feed]\nurl = \"https://{address}\"\nca_file = \"{}\"\nvia = \"isp-1\"\n{feed}\n",
            pem.display()
        ),
        ..Settings::default()
    };
    let steer = Steer::start(lab, &settings).unwrap();
    Office { service, steer }
}

impl Office<'_> {
    fn update(&self) -> Output {
        self.steer.command(&["endpoints", "update"]).unwrap()
    }
}
