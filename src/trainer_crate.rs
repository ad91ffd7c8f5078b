//! The crate that a study trains: one file to edit, the others fixed.

use crate::{
    bundle::FILES,
    error::{Error, Result},
    hash::sha256_of_parts,
    outline::outline,
    project::{Project, write_if_changed},
};
use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Component, Path, PathBuf},
};
use syn::spanned::Spanned;

/// The one file that proposers edit, relative to the crate.
pub(crate) const EDITED: &str = "src/train.rs";

/// A trainer crate, read whole.
#[derive(Debug, Clone)]
pub struct TrainerCrate {
    project: Project,
    fingerprint: String,
}

impl TrainerCrate {
    /// Reads the crate in `folder`. Hidden files and `target` folders are no part of it.
    ///
    /// Dependencies by a relative path that leads out of the folder become absolute.
    ///
    /// # Errors
    /// A file that a trainer needs is missing, or `src/lib.rs` does not hold the edited module
    /// under `forbid(unsafe_code)`.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut project = Project::open(folder, EDITED)?;
        let folder = project.folder.clone();
        let refuse = |problem: String| Error::Project { folder: folder.clone(), problem };
        for needed in ["Cargo.toml", "Cargo.lock", "src/lib.rs"] {
            if !project.fixed.contains_key(needed) {
                let advice = if needed == "Cargo.lock" {
                    "; run `cargo generate-lockfile` there, so that every trial has the same \
                     dependencies"
                } else {
                    ""
                };
                return Err(refuse(format!("there is no {needed}{advice}")));
            }
        }
        places_of_forbidden_unsafe(&project.fixed["src/lib.rs"]).map_err(refuse)?;
        for (name, contents) in &mut project.fixed {
            if name == "Cargo.toml" || name.ends_with("/Cargo.toml") {
                let home = folder.join(name);
                let home = home.parent().unwrap_or(&folder);
                *contents = with_absolute_paths(contents, home, &folder)
                    .map_err(|problem| refuse(format!("{name}: {problem}")))?;
            }
        }
        let fingerprint = project.fingerprint();
        Ok(Self { project, fingerprint })
    }

    /// The GPT that comes with the library, laid out in `cache`: `trainer-template/` of the
    /// repository.
    pub fn template(cache: &Path) -> Result<Self> {
        let parts = FILES.iter().flat_map(|(name, text)| [name.as_bytes(), text.as_bytes()]);
        let name = sha256_of_parts(parts);
        let folder = cache.join("template").join(&name[..16]);
        for (name, text) in FILES {
            write_if_changed(&folder.join(name), text.as_bytes())?;
        }
        Self::open(&folder.join("trainer-template"))
    }

    /// Lets the edited module contain `unsafe`: it is built without the attribute that forbids it.
    /// Such a trainer can reach all of the process that it runs in, also while it is loaded.
    pub fn allow_unsafe(mut self) -> Result<Self> {
        let lib = &self.project.fixed["src/lib.rs"];
        let places = places_of_forbidden_unsafe(lib)
            .map_err(|problem| Error::Project { folder: self.project.folder.clone(), problem })?;
        let mut text = String::from_utf8_lossy(lib).into_owned();
        for place in places.into_iter().rev() {
            text.replace_range(place, "");
        }
        self.project.fixed.insert("src/lib.rs".to_owned(), text.into_bytes());
        self.fingerprint = self.project.fingerprint();
        Ok(self)
    }

    /// Whether its edited module may not contain `unsafe`.
    pub(crate) fn forbids_unsafe(&self) -> bool {
        places_of_forbidden_unsafe(&self.project.fixed["src/lib.rs"]).is_ok()
    }

    /// Where the crate was read from.
    pub fn folder(&self) -> &Path {
        &self.project.folder
    }

    /// The text of the edited file.
    pub fn source(&self) -> &str {
        &self.project.source
    }

    /// SHA-256 over the fixed files and the crate's place, in hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn depends_on(&self, name: &str) -> bool {
        let manifest = String::from_utf8_lossy(&self.project.fixed["Cargo.toml"]);
        let manifest: toml_edit::DocumentMut = manifest.parse().unwrap_or_default();
        manifest.get("dependencies").is_some_and(|dependencies| dependencies.get(name).is_some())
    }

    /// Its files.
    pub(crate) fn project(&self) -> &Project {
        &self.project
    }

    /// What `src/train.rs` may call, as Markdown: plugin-api, and every module beside `src/`.
    pub(crate) fn references(&self) -> Vec<(String, String)> {
        let api = FILES.iter().filter_map(|(name, text)| {
            let module = name.strip_prefix("plugin-api/src/")?;
            // The mirror that crosses the boundary is nobody's business who writes a trainer.
            (module != "raw.rs").then(|| (module.to_owned(), outline(text)))
        });
        let mut references = vec![reference("plugin-api", api)];
        if self.depends_on("candle-nn") {
            references.push(("candle-nn.md".to_owned(), CANDLE_NN.to_owned()));
        }
        let mut beside: BTreeMap<&str, Vec<(String, String)>> = BTreeMap::new();
        for (name, contents) in &self.project.fixed {
            let Some((place, module)) = name.split_once('/') else { continue };
            if place != "src" && module.ends_with(".rs") && !module.contains("tests") {
                let outline = outline(&String::from_utf8_lossy(contents));
                let module = module.strip_prefix("src/").unwrap_or(module);
                beside.entry(place).or_default().push((module.to_owned(), outline));
            }
        }
        references.extend(beside.into_iter().map(|(place, modules)| reference(place, modules)));
        references
    }
}

/// Which of its layers can be trained through: the compiler does not say. A test of the template compares.
const CANDLE_NN: &str = include_str!("candle_nn.md");

fn reference(name: &str, modules: impl IntoIterator<Item = (String, String)>) -> (String, String) {
    let mut text = format!("# {name}\n");
    for (module, outline) in modules.into_iter().filter(|(_, outline)| !outline.trim().is_empty()) {
        text += &format!("\n## {module}\n\n```rust\n{}\n```\n", outline.trim());
    }
    (format!("{name}.md"), text)
}

/// The edited module may not contain `unsafe`, and only its parent can see to that: an inner
/// attribute could be edited away. Where in the text it does so.
fn places_of_forbidden_unsafe(lib: &[u8]) -> Result<Vec<Range<usize>>, String> {
    let advice = "src/lib.rs must declare the edited module as `#[forbid(unsafe_code)] mod train;`";
    let lib = std::str::from_utf8(lib).map_err(|_| "src/lib.rs is not UTF-8 text".to_owned())?;
    let lib = syn::parse_file(lib).map_err(|error| format!("src/lib.rs: {error}"))?;
    let forbids = |attribute: &&syn::Attribute| {
        let lints = syn::punctuated::Punctuated::<syn::Path, syn::Token![,]>::parse_terminated;
        attribute.path().is_ident("forbid")
            && attribute
                .parse_args_with(lints)
                .is_ok_and(|lints| lints.iter().any(|lint| lint.is_ident("unsafe_code")))
    };
    let module = lib.items.iter().find_map(|item| match item {
        syn::Item::Mod(module) if module.ident == "train" => Some(module),
        _ => None,
    });
    let attributes = lib.attrs.iter().chain(module.into_iter().flat_map(|module| &module.attrs));
    let places: Vec<_> =
        attributes.filter(forbids).map(|attribute| attribute.span().byte_range()).collect();
    if module.is_none() || places.is_empty() { Err(advice.to_owned()) } else { Ok(places) }
}

/// The crate is built at another place than where it was written.
fn with_absolute_paths(manifest: &[u8], home: &Path, root: &Path) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(manifest).map_err(|_| "it is not UTF-8 text".to_owned())?;
    let mut manifest: toml_edit::DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| error.to_string())?;
    absolutise(manifest.as_table_mut(), home, root);
    Ok(manifest.to_string().into_bytes())
}

fn absolutise(table: &mut dyn toml_edit::TableLike, home: &Path, root: &Path) {
    for (key, item) in table.iter_mut() {
        let dependencies = key.get().ends_with("dependencies");
        let Some(inner) = item.as_table_like_mut() else { continue };
        if !dependencies {
            absolutise(inner, home, root);
            continue;
        }
        for (_, dependency) in inner.iter_mut() {
            let Some(dependency) = dependency.as_table_like_mut() else { continue };
            let Some(path) = dependency.get("path").and_then(|path| path.as_str()) else {
                continue;
            };
            let absolute = normalised(&home.join(path));
            if !absolute.starts_with(root) {
                let absolute = absolute.to_string_lossy().into_owned();
                dependency.insert("path", toml_edit::value(absolute));
            }
        }
    }
}

/// Without `..`, by the names alone.
pub(crate) fn normalised(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            component => normal.push(component),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_without_the_forbidden_unsafe_is_refused() {
        for lib in ["mod train;", "#[deny(unsafe_code)] mod train;", "", "mod other;"] {
            assert!(places_of_forbidden_unsafe(lib.as_bytes()).is_err(), "{lib:?} was taken");
        }
        for lib in ["#[forbid(unsafe_code)] mod train;", "#![forbid(unsafe_code)] mod train;"] {
            let places = places_of_forbidden_unsafe(lib.as_bytes()).unwrap();
            assert_eq!(lib.replace(&lib[places[0].clone()], ""), " mod train;");
        }
    }

    #[test]
    fn whoever_edits_the_template_is_told_what_cuts_gradients() {
        let cache = tempfile::tempdir().unwrap();
        let references = TrainerCrate::template(cache.path()).unwrap().references();
        let names: Vec<_> = references.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["plugin-api.md", "candle-nn.md", "kernels.md"]);
        assert!(references[1].1.contains("`ops::softmax_last_dim`"));
    }

    #[test]
    fn paths_that_lead_out_of_the_crate_become_absolute() {
        let manifest = "[dependencies]\n\
            api = { path = \"../api\", version = \"1\" }\n\
            kernels = { path = \"kernels\" }\n\
            serde = \"1\"\n\
            [target.'cfg(unix)'.dependencies.deep]\n\
            path = \"../../deep\"\n";
        let root = Path::new("/home/me/trainer");
        let absolute = with_absolute_paths(manifest.as_bytes(), root, root).unwrap();
        let absolute = String::from_utf8(absolute).unwrap();
        assert!(absolute.contains("path = \"/home/me/api\""), "{absolute}");
        assert!(absolute.contains("path = \"/home/deep\""), "{absolute}");
        assert!(absolute.contains("path = \"kernels\""), "{absolute}");
    }
}
