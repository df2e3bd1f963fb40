//! A mirror that nobody has to trust: lists are signed by the real minisign.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use steer_tests::{
    unpacked,
    webservice::{Reply, WebService},
};

use super::{Alone, edited};

/// A key pair, in files.
struct Signer<'a> {
    program: PathBuf,
    folder: &'a Path,
    name: &'static str,
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
    fn make(&self) -> String {
        let (public, secret) = (format!("{}.pub", self.name), format!("{}.key", self.name));
        self.run(&["-G", "-W", "-p", &public, "-s", &secret]);
        let text = fs::read_to_string(self.folder.join(public)).unwrap();
        text.lines().last().unwrap().to_owned()
    }

    fn sign(&self, list: &Value, comment: &str, more: &[&str]) -> Vec<u8> {
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
