//! A mirror that nobody has to trust: lists are signed by the real minisign.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use steer_tests::{
    lab::{Lab, LabOptions},
    server::Site,
    steer::{Settings, Steer},
    traffic::{Flow, probe_all},
    unpacked,
    webservice::{Reply, WebService},
};

use super::{Alone, edited, text};

/// A key pair, in files.
pub(super) struct Signer<'a> {
    pub(super) program: PathBuf,
    pub(super) folder: &'a Path,
    pub(super) name: &'static str,
}

impl Signer<'_> {
    fn run(&self, arguments: &[&str]) {
        let output = Command::new(&self.program)
            .args(arguments)
            .current_dir(self.folder)
            .env("LD_LIBRARY_PATH", unpacked::libraries())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    /// Makes it, and gives the public key.
    pub(super) fn make(&self) -> String {
        let (public, secret) = (format!("{}.pub", self.name), format!("{}.key", self.name));
        self.run(&["-G", "-W", "-p", &public, "-s", &secret]);
        let text = fs::read_to_string(self.folder.join(public)).unwrap();
        text.lines().last().unwrap().to_owned()
    }

    pub(super) fn sign(&self, list: &Value, comment: &str, more: &[&str]) -> Vec<u8> {
        fs::write(self.folder.join("list"), list.to_string()).unwrap();
        let secret = format!("{}.key", self.name);
        let sign = [
            "-S",
            "-s",
            &secret,
            "-m",
            "list",
            "-x",
            "signature",
            "-t",
            comment,
        ];
        self.run(&[&sign, more].concat());
        fs::read(self.folder.join("signature")).unwrap()
    }
}

fn serve(service: &WebService, version: &str, list: &Value, signature: Option<&[u8]>) {
    let (version, list) = (version.to_owned(), list.clone());
    let signature = signature.map(<[u8]>::to_vec);
    service.say(move |target| {
        if target.starts_with("/version/") {
            return Reply::json(&json!({"instance": "Worldwide", "latest": version}));
        }
        if target.starts_with("/endpoints/Worldwide?") {
            return Reply::json(&list);
        }
        match &signature {
            Some(text) if target.starts_with("/endpoints/Worldwide.minisig") => {
                Reply::http("200 OK", "", text)
            }
            _ => Reply::http("404 Not Found", "", b""),
        }
    });
}

#[test]
fn only_what_the_signer_signed_for_a_version_is_taken_and_no_replay() {
    let Some(program) = unpacked::find("usr/bin/minisign") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let signer = |name| Signer {
        program: program.clone(),
        folder: folder.path(),
        name,
    };
    let (ours, theirs) = (signer("ours"), signer("theirs"));
    let key = ours.make();
    theirs.make();
    let config = format!("update = \"automatic\"\nremoval_delay = \"0s\"\npublic_key = \"{key}\"");
    let alone = Alone::start("signed", &config);
    let [first, second, third] = ["150.171.64.0/22", "150.171.72.0/22", "150.171.80.0/22"]
        .map(|prefix| edited(&[prefix], &[]));
    let [one, two, three] = ["2026070100", "2026080100", "2026090100"];
    let signed_first = ours.sign(&first, &format!("Worldwide {one}"), &[]);
    serve(&alone.service, one, &first, Some(&signed_first));
    alone.fine(&["update"]);
    assert_eq!(alone.version(), one);

    let signed_second = ours.sign(&second, &format!("Worldwide {two}"), &[]);
    let by_theirs = theirs.sign(&second, &format!("Worldwide {two}"), &[]);
    let for_china = ours.sign(&second, &format!("China {two}"), &[]);
    let legacy = ours.sign(&second, &format!("Worldwide {two}"), &["-l"]);
    for (list, signature, why) in [
        (&second, None, "answered 404"),
        (&second, Some(&b"no signature"[..]), "not signed by"),
        (&second, Some(&by_theirs), "not signed by"),
        (&second, Some(&legacy), "not signed by"),
        (&third, Some(&signed_second), "not signed by"),
        (&second, Some(&for_china), "signed as \"China 2026080100\""),
        (
            &first,
            Some(&signed_first),
            "signed as \"Worldwide 2026070100\"",
        ),
    ] {
        serve(&alone.service, two, list, signature);
        alone.refused(&["update"], why);
        assert_eq!(alone.version(), one, "{why}");
    }
    serve(&alone.service, two, &second, Some(&signed_second));
    alone.fine(&["update"]);
    assert_eq!(alone.version(), two);

    // Not even after a rollback does an older one come back that way.
    let signed_third = ours.sign(&third, &format!("Worldwide {three}"), &[]);
    serve(&alone.service, three, &third, Some(&signed_third));
    alone.fine(&["update"]);
    alone.fine(&["rollback", one]);
    alone.fine(&["unpin"]);
    serve(&alone.service, two, &second, Some(&signed_second));
    alone.refused(&["update"], "older than 2026090100");
    assert_eq!(alone.version(), one);
    serve(&alone.service, three, &third, Some(&signed_third));
    alone.fine(&["update"]);
    assert_eq!(alone.version(), three);
}

/// Puts a mirror's files into its folder, as rsync does: each whole, the version last.
fn put(folder: &Path, version: &str, list: &Value, signature: &[u8]) {
    let said = json!({"instance": "Worldwide", "latest": version});
    for (name, bytes) in [
        ("endpoints/Worldwide.minisig", signature),
        ("endpoints/Worldwide", list.to_string().as_bytes()),
        ("version/Worldwide", said.to_string().as_bytes()),
    ] {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let unfinished = path.with_extension("unfinished");
        fs::write(&unfinished, bytes).unwrap();
        fs::rename(unfinished, path).unwrap();
    }
}

/// No server and no network: what is put into a folder is taken as soon as it is there, if it is
/// signed, and nothing else is.
#[test]
fn a_signed_mirror_in_a_folder_is_followed_as_it_changes() {
    let Some(program) = unpacked::find("usr/bin/minisign") else {
        return;
    };
    let lab = Lab::start(LabOptions::default()).unwrap();
    let keys = tempfile::tempdir().unwrap();
    let ours = Signer {
        program,
        folder: keys.path(),
        name: "ours",
    };
    let public = ours.make();
    let mirror = lab.directory().join("mirror");
    let version = |number: u8| format!("20270101{number:02}");
    let prefix = |number: u8| format!("150.171.{}.0/24", 100 + number);
    let signed = |number: u8| {
        let list = edited(&[&prefix(number)], &[]);
        let signature = ours.sign(&list, &format!("Worldwide {}", version(number)), &[]);
        (list, signature)
    };
    let (list, signature) = signed(0);
    put(&mirror, &version(0), &list, &signature);
    let settings = Settings {
        more: format!(
            "[feed]\nurl = \"file://{}\"\nupdate = \"automatic\"\nremoval_delay = \"0s\"\n\
             public_key = \"{public}\"\n",
            mirror.display()
        ),
        ..Settings::default()
    };
    // Nobody asks for anything below, and the next look by itself is an hour away.
    let steer = Steer::start(&lab, &settings).unwrap();
    let in_use = |number: u8| {
        let wanted = version(number);
        steer
            .wait_for("the version is in use", |status| {
                status["feed"]["version"] == wanted
            })
            .unwrap();
        let flow = |number: u8| Flow::tcp([150, 171, 100 + number, 9].into(), 443);
        let flows = [flow(number), flow(number + 1)];
        let sites = probe_all(&lab.client, &flows).unwrap();
        assert_eq!([sites[0].site, sites[1].site], [Site::Near, Site::Far]);
    };
    in_use(0);
    let mut number = 0;
    let (other, by_ours) = (signed(20).0, signed(21).1);
    for (list, signature, why) in [
        (&other, &b"no signature"[..], "is not signed by"),
        (&other, &by_ours, "is not signed by"),
        (&list, &signature, "it was signed as"),
        (&other, &[b'x'; 5000], "more than 4096 bytes"),
    ] {
        put(&mirror, &version(number + 1), list, signature);
        let refused = |status: &Value| {
            let error = status["feed"]["update"]["error"].as_str();
            error.is_some_and(|error| error.contains(why))
        };
        steer.wait_for(why, refused).unwrap();
        in_use(number);
        number += 1;
        let (list, signature) = signed(number);
        put(&mirror, &version(number), &list, &signature);
        in_use(number);
    }
    // What is no file is not waited for.
    let list = mirror.join("endpoints/Worldwide");
    fs::remove_file(&list).unwrap();
    let made = Command::new("mkfifo").arg(&list).status().unwrap();
    assert!(made.success());
    let update = || steer.command(&["endpoints", "update"]).unwrap();
    put_version(&mirror, &version(number + 1));
    assert!(text(&update()).contains("is no file"), "{}", steer.log());
    fs::remove_dir_all(&mirror).unwrap();
    assert!(text(&update()).contains("bring the mirror's folder"));
    in_use(number);
    number += 1;
    let (list, signature) = signed(number);
    put(&mirror, &version(number), &list, &signature);
    assert!(update().status.success(), "{}", steer.log());
    in_use(number);
}

fn put_version(mirror: &Path, version: &str) {
    let said = json!({"instance": "Worldwide", "latest": version});
    fs::write(mirror.join("version/Worldwide"), said.to_string()).unwrap();
}
