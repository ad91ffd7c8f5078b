//! That imports point downwards, as ARCHITECTURE.md lists the layers.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// The height of each module; the lowest layer is 0.
fn layers() -> HashMap<String, usize> {
    let map = fs::read_to_string("ARCHITECTURE.md").unwrap();
    let (_, list) = map.split_once("```layers\n").expect("the list of layers");
    let (list, _) = list.split_once("```").unwrap();
    let rows = list.lines().rev().enumerate();
    let modules = rows.flat_map(|(height, row)| {
        row.split_whitespace().map(move |module| (module.to_owned(), height))
    });
    modules.collect()
}

/// The sources of the library by the module that they belong to.
fn sources(folder: &Path, found: &mut Vec<(String, PathBuf)>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let place = path.strip_prefix("src").unwrap().to_owned();
        let module = place.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let module = module.trim_end_matches(".rs").to_owned();
        // The program is no part of it, and what is carried belongs to other crates.
        if entry.file_type().unwrap().is_symlink() || module == "bin" || module == "lib" {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push((module, path));
        }
    }
}

/// The first names behind each `crate::`, without comments and tests.
fn imported(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut names = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        let is_part_of_a_word = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        // `$crate` is another crate's, where it is used.
        if is_part_of_a_word || code[..at].ends_with('$') {
            continue;
        }
        let rest = &code[at + found.len()..];
        match rest.strip_prefix('{') {
            None => names.push(first_name(rest)),
            Some(group) => names.extend(members(group)),
        }
    }
    names
}

fn first_name(text: &str) -> String {
    text.trim_start().chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect()
}

/// The first names of a group, up to the brace that closes it.
fn members(group: &str) -> Vec<String> {
    let (mut names, mut depth, mut is_first) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        if depth == 0 && is_first && !c.is_whitespace() {
            names.push(first_name(&group[at..]));
            is_first = false;
        }
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_first = true,
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn imports_point_downwards() {
    let layers = layers();
    let mut found = Vec::new();
    sources(Path::new("src"), &mut found);
    assert!(found.len() > 100, "{}", found.len());
    let mut wrong = Vec::new();
    for (module, path) in &found {
        let Some(height) = layers.get(module) else {
            wrong.push(format!("{module} is in no layer"));
            continue;
        };
        for name in imported(&fs::read_to_string(path).unwrap()) {
            match layers.get(&name) {
                _ if name == *module => {}
                Some(below) if below < height => {}
                Some(_) => wrong.push(format!("{}: {name} is not below {module}", path.display())),
                None => wrong.push(format!("{}: crate::{name} is no module", path.display())),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_read_in_every_form() {
    let text = "use crate::{\n    error::{Error, Result},\n    hash,\n};\nuse crate::event::Event;\n// crate::not\n\
                fn f() -> crate::record::Trial {}\nmacro_rules! m { () => { $crate::g } }\n\
                #[cfg(test)]\nmod tests { use crate::above; }";
    assert_eq!(imported(text), ["error", "hash", "event", "record"]);
}
