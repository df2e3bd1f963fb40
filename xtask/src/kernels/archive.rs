//! Debian's kernels, through apt with lists of its own: the machine's configuration stays as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::process::{Step, program, say};

/// The suites that hold kernels of interest, and whether they are those of the security archive.
const SUITES: &[(&str, bool)] = &[
    ("bullseye", false),
    ("bullseye-security", true),
    ("bookworm", false),
    ("bookworm-backports", false),
    ("bookworm-security", true),
    ("trixie", false),
    ("trixie-backports", false),
    ("trixie-security", true),
    ("sid", false),
];

/// How many kernels of one minor version are tried: the newest is often gone again before the
/// list says so.
const ATTEMPTS: usize = 4;

/// A minor version, such as 6.12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Minor(u32, u32);

impl fmt::Display for Minor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for Minor {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text
            .split_once('.')
            .and_then(|(major, minor)| Some(Self(major.parse().ok()?, minor.parse().ok()?)));
        parsed.ok_or_else(|| anyhow!("{text} is no version such as 6.12"))
    }
}

/// A kernel that the package lists know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What `uname -r` will say.
    pub release: String,
    version: String,
    packages: Vec<String>,
}

/// apt with the suites above.
pub struct Archive {
    config: PathBuf,
}

impl Archive {
    /// Reads the package lists of the mirrors that this machine uses.
    pub fn open(directory: &Path) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        fs::write(directory.join("sources.list"), sources()?)?;
        fs::write(directory.join("status"), "")?;
        let config = directory.join("apt.conf");
        let at = directory.display();
        fs::write(
            &config,
            format!(
                "Dir::State::lists \"{at}/lists\";\n\
                 Dir::State::status \"{at}/status\";\n\
                 Dir::Etc::sourcelist \"{at}/sources.list\";\n\
                 Dir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::Etc::preferencesparts \"/dev/null\";\n\
                 Dir::Cache \"{at}/cache\";\n\
                 Acquire::Languages \"none\";\n\
                 APT::Architecture \"amd64\";\n\
                 APT::Sandbox::User \"\";\n"
            ),
        )?;
        let archive = Self { config };
        say("reading the lists of Debian's kernels");
        if let Err(error) = archive.apt("apt-get").args(["--quiet=2", "update"]).run() {
            // A suite that moved away must not hide the others.
            say(&format!(
                "{error:#}; going on with the lists that are there"
            ));
        }
        Ok(archive)
    }

    /// The kernels by minor version, the newest first.
    pub fn kernels(&self) -> Result<BTreeMap<Minor, Vec<Candidate>>> {
        let names = self
            .apt("apt-cache")
            .args(["search", "--names-only"])
            .arg(r"^linux-(image|binary|modules)-[0-9]+\.[0-9]+\.[0-9].*-amd64(-unsigned)?$")
            .output()?;
        let names: Vec<&str> = names
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| !name.contains("-cloud-") && !name.contains("-rt-"))
            .collect();
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let versions = self.apt("apt-cache").arg("madison").args(names).output()?;
        Ok(group(&versions))
    }

    /// Downloads and unpacks the newest of the candidates that is still there, into
    /// `directory/root`.
    pub fn fetch<'a>(
        &self,
        candidates: &'a [Candidate],
        directory: &Path,
    ) -> Result<&'a Candidate> {
        let mut last = None;
        for candidate in candidates.iter().take(ATTEMPTS) {
            match self.unpack(candidate, directory) {
                Ok(()) => return Ok(candidate),
                Err(error) => last = Some(error.context(candidate.release.clone())),
            }
        }
        match last {
            Some(error) => Err(error.context("no longer in the archive")),
            None => bail!("the archive has no such kernel"),
        }
    }

    fn unpack(&self, candidate: &Candidate, directory: &Path) -> Result<()> {
        let (root, marker) = (directory.join("root"), directory.join("unpacked"));
        let key = format!("{} {}", candidate.release, candidate.version);
        if fs::read_to_string(&marker).is_ok_and(|text| text == key) {
            return Ok(());
        }
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        let packages = directory.join("packages");
        fs::create_dir_all(&packages)?;
        let wanted = candidate
            .packages
            .iter()
            .map(|name| format!("{name}={}", candidate.version));
        self.apt("apt-get")
            .args(["--quiet=2", "download"])
            .args(wanted)
            .in_directory(&packages)
            .run()?;
        for file in fs::read_dir(&packages)? {
            program("dpkg-deb")
                .arg("--extract")
                .arg(file?.path())
                .arg(&root)
                .run()?;
        }
        fs::remove_dir_all(&packages)?;
        fs::write(&marker, key).context("write the marker")
    }

    fn apt(&self, command: &str) -> Step {
        // Its messages are read nowhere, but errors should look the same everywhere.
        program(command)
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C.UTF-8")
    }
}

/// Sources for every suite, from the mirrors that the machine is configured with.
fn sources() -> Result<String> {
    let indexes = program("apt-get")
        .args(["indextargets", "--format", "$(LABEL) $(REPO_URI)"])
        .arg("Identifier: Packages")
        .output()?;
    let mirror = |label: &str| {
        indexes
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(found, _)| *found == label)
            .map(|(_, mirror)| mirror.to_owned())
    };
    let main = mirror("Debian").context(
        "this machine's apt has no Debian mirror, and the kernels are Debian's packages. On a \
         Debian machine run `apt-get update` first",
    )?;
    let security = mirror("Debian-Security");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let lines = SUITES.iter().filter_map(|&(suite, of_security)| {
        let mirror = if of_security {
            security.as_ref()?
        } else {
            &main
        };
        Some(format!("deb [signed-by={keyring}] {mirror} {suite} main\n"))
    });
    Ok(lines.collect())
}

/// Makes candidates of the lines `package | version | source`.
fn group(madison: &str) -> BTreeMap<Minor, Vec<Candidate>> {
    let mut packages: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for line in madison.lines() {
        let mut fields = line.split('|').map(str::trim);
        let (Some(name), Some(version)) = (fields.next(), fields.next()) else {
            continue;
        };
        let bare = name.strip_suffix("-unsigned").unwrap_or(name);
        let release = bare.splitn(3, '-').nth(2).unwrap_or(bare);
        packages
            .entry((release.to_owned(), version.to_owned()))
            .or_default()
            .insert(name.to_owned());
    }
    let mut kernels: BTreeMap<Minor, Vec<Candidate>> = BTreeMap::new();
    for ((release, version), names) in packages {
        let Some(packages) = needed(&release, &names) else {
            continue;
        };
        let mut numbers = release.split('.');
        let minor = numbers
            .next()
            .zip(numbers.next())
            .and_then(|(major, minor)| format!("{major}.{minor}").parse().ok());
        if let Some(minor) = minor {
            kernels.entry(minor).or_default().push(Candidate {
                release,
                version,
                packages,
            });
        }
    }
    for candidates in kernels.values_mut() {
        candidates.sort_by_key(|candidate| std::cmp::Reverse(numbers(&candidate.version)));
    }
    kernels
}

/// The packages that hold a kernel's image and modules. Up to 6.18 it is one; then the image's
/// package became empty, and what it held is in two others, one of which may be gone.
fn needed(release: &str, names: &BTreeSet<String>) -> Option<Vec<String>> {
    let [image, unsigned, binary, modules] = [
        format!("linux-image-{release}"),
        format!("linux-image-{release}-unsigned"),
        format!("linux-binary-{release}"),
        format!("linux-modules-{release}"),
    ];
    if names.contains(&binary) {
        return names.contains(&modules).then(|| vec![binary, modules]);
    }
    [image, unsigned]
        .into_iter()
        .find(|name| names.contains(name))
        .map(|name| vec![name])
}

/// The numbers in a version, in order: enough to tell which of two kernels is newer.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADISON: &str = "\
linux-image-6.12.9+deb13-amd64 | 6.12.9-1 | http://mirror/debian trixie/main amd64 Packages
linux-image-6.12.117+deb13-amd64 | 6.12.117-1 | http://mirror/debian trixie/main amd64 Packages
linux-image-6.12.117+deb13-amd64-unsigned | 6.12.117-1 | http://mirror/debian trixie/main amd64 Packages
linux-image-6.1.0-56-amd64-unsigned | 6.1.192-2 | http://mirror/debian bookworm/main amd64 Packages
linux-binary-7.1.3+deb13-amd64 | 7.1.3-1~bpo13+1 | http://mirror/debian trixie-backports/main amd64 Packages
linux-image-7.1.3+deb13-amd64 | 7.1.3-1~bpo13+1 | http://mirror/debian trixie-backports/main amd64 Packages
linux-binary-7.3.4+deb13-amd64 | 7.3.4-1~bpo13+1 | http://mirror/debian trixie-backports/main amd64 Packages
linux-modules-7.3.4+deb13-amd64 | 7.3.4-1~bpo13+1 | http://mirror/debian trixie-backports/main amd64 Packages
";

    fn releases(minor: &str) -> Vec<(String, Vec<String>)> {
        let minor: Minor = minor.parse().unwrap_or(Minor(0, 0));
        group(MADISON)
            .remove(&minor)
            .unwrap_or_default()
            .into_iter()
            .map(|it| (it.release, it.packages))
            .collect()
    }

    #[test]
    fn the_newest_kernel_comes_first_and_the_signed_one_is_taken() {
        let expected = ["6.12.117+deb13-amd64", "6.12.9+deb13-amd64"]
            .map(|release| (release.to_owned(), vec![format!("linux-image-{release}")]));
        assert_eq!(releases("6.12"), expected);
    }

    #[test]
    fn an_unsigned_image_is_better_than_none() {
        let expected = ("6.1.0-56-amd64", "linux-image-6.1.0-56-amd64-unsigned");
        assert_eq!(
            releases("6.1"),
            [(expected.0.to_owned(), vec![expected.1.to_owned()])]
        );
    }

    #[test]
    fn a_kernel_without_its_modules_is_none() {
        assert_eq!(releases("7.1"), []);
        let expected = ["binary", "modules"].map(|part| format!("linux-{part}-7.3.4+deb13-amd64"));
        assert_eq!(
            releases("7.3"),
            [("7.3.4+deb13-amd64".to_owned(), expected.to_vec())]
        );
    }
}
