//! The program's environment.

/// Docker's default.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Docker's defaults, what the image sets, and what the user sets: the later wins.
pub(crate) fn complete(
    hostname: &str,
    tty: bool,
    image: &[String],
    user: &[String],
) -> Vec<String> {
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if tty {
        env.push("TERM=xterm".to_owned());
    }
    for variable in image.iter().chain(user) {
        set(&mut env, variable);
    }
    env
}

/// The value of a variable.
pub(super) fn get<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    let mut values = env.iter().filter_map(|variable| variable.split_once('='));
    values
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

/// Replaces or adds `NAME=value`. Without `=` the variable is taken away, as Docker does.
fn set(env: &mut Vec<String>, variable: &str) {
    let (name, value) = match variable.split_once('=') {
        Some((name, _)) => (name, Some(variable)),
        None => (variable, None),
    };
    let same = |set: &String| set.split_once('=').is_some_and(|(set, _)| set == name);
    match (env.iter().position(same), value) {
        (Some(at), Some(variable)) => env[at] = variable.to_owned(),
        (Some(at), None) => drop(env.remove(at)),
        (None, Some(variable)) if !name.is_empty() => env.push(variable.to_owned()),
        (None, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_wins_over_the_image_and_both_over_the_defaults() {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let image = strings(&["PATH=/image", "A=image", "B=image"]);
        let env = complete("h", false, &image, &strings(&["A=a=b", "B", "=x", "C="]));
        assert_eq!(env, ["PATH=/image", "HOSTNAME=h", "A=a=b", "C="]);
        assert_eq!(get(&env, "A"), Some("a=b"));
        assert_eq!(get(&env, "B"), None);
    }
}
