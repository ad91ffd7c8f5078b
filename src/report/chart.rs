//! The progress chart, `progress.svg`, in the look of autoresearch's `progress.png`.

use super::labels::{self, Area, Label};
use crate::{
    error::{Error, Result},
    record::{Status, Trial},
    text::line,
};
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use std::{fmt::Write as _, fs::File, io, ops::Range, path::Path};

/// In pixels.
const SIZE: (u32, u32) = (1600, 800);
/// Labels of the last points lean over the right edge of the plot.
const RIGHT_MARGIN: u32 = 150;

/// The colours of autoresearch's notebook.
const KEPT: &str = "#2ecc71";
const LABEL: &str = "#1a7a3a";
const LINE: RGBColor = RGBColor(0x27, 0xae, 0x60);
const DISCARDED: RGBColor = RGBColor(0xcc, 0xcc, 0xcc);

/// Draws the trials into `progress.svg` in `dir`: every score by trial number, the kept ones named,
/// and the best so far as a line.
///
/// What matters is the way from the baseline to the best; trials that did much worse lie above the
/// chart's top edge, and crashed ones have no score to draw. The names of kept trials that would
/// cover more important ones are left out; a browser shows each when it is pointed at.
///
/// # Errors
/// The file cannot be written. One that was there before is whole then.
pub fn write_chart(dir: &Path, trials: &[Trial]) -> Result<()> {
    let path = dir.join("progress.svg");
    let svg = draw(trials)
        .map_err(|error| Error::io("draw", &path)(io::Error::other(error.to_string())))?;
    replace(dir, &path, &svg).map_err(Error::io("write", &path))
}

/// A trial with a score.
#[derive(Debug, Clone, Copy)]
struct Scored<'a> {
    trial: &'a Trial,
    /// As it was measured, and as it is drawn.
    score: f64,
    /// Lower is better, whatever the objective.
    cost: f64,
}

impl Scored<'_> {
    fn number(&self) -> f64 {
        self.trial.trial as f64
    }
}

fn draw(trials: &[Trial]) -> Result<String, DrawingAreaErrorKind<io::Error>> {
    let scored: Vec<_> = trials
        .iter()
        .filter(|trial| trial.status != Status::Crash)
        .filter_map(|trial| Some(Scored { trial, score: trial.score()?, cost: trial.cost()? }))
        .filter(|scored| scored.score.is_finite())
        .collect();
    let kept: Vec<_> = scored.iter().copied().filter(|scored| scored.trial.is_kept()).collect();
    let objective = trials.first().map(|baseline| &baseline.measurement);
    let rises = objective.is_some_and(|measured| measured.higher_is_better());
    let heights = heights(&scored);
    let heights = if rises { -heights.end..-heights.start } else { heights };
    let last = trials.len().saturating_sub(1) as f64;
    let beside = (last / 50.0).max(0.5);

    let mut svg = String::new();
    let mut overlay = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin_top(60)
            .margin_left(15)
            .margin_bottom(10)
            .margin_right(RIGHT_MARGIN)
            .x_label_area_size(55)
            .y_label_area_size(85)
            .build_cartesian_2d(-beside..last + beside, heights.clone())?;
        let title = ("sans-serif", 22).into_text_style(&root);
        root.draw(&Text::new(
            heading(trials),
            (SIZE.0 as i32 / 2, 20),
            title.pos(Pos::new(HPos::Center, VPos::Top)),
        ))?;
        let decimals = decimals(&heights);
        chart
            .configure_mesh()
            .bold_line_style(BLACK.mix(0.12))
            .light_line_style(TRANSPARENT)
            .axis_style(BLACK.mix(0.6))
            .label_style(("sans-serif", 15))
            .axis_desc_style(("sans-serif", 18))
            .x_desc("Experiment #")
            .y_desc(match objective.and_then(|measured| measured.metric.as_ref()) {
                // plotters passes control characters on, and such a file cannot be read.
                Some(metric) if rises => format!("{} (higher is better)", line(&metric.name, 60)),
                Some(metric) => format!("{} (lower is better)", line(&metric.name, 60)),
                None => "Validation BPB (lower is better)".to_owned(),
            })
            .x_labels(trials.len().clamp(1, 15))
            .y_labels(10)
            .x_label_formatter(&|number| format!("{number:.0}"))
            .y_label_formatter(&|score| format!("{score:.decimals$}"))
            .draw()?;

        let discarded = scored.iter().filter(|scored| !scored.trial.is_kept());
        let seen = discarded.filter(|scored| heights.contains(&scored.score));
        chart.draw_series(seen.map(|scored| {
            Circle::new((scored.number(), scored.score), 3, DISCARDED.mix(0.7).filled())
        }))?;
        let line = LINE.mix(0.7).stroke_width(2);
        chart.draw_series(LineSeries::new(steps(&kept, last), line))?;

        let at = |scored: &Scored<'_>| chart.backend_coord(&(scored.number(), scored.score));
        for kept in &kept {
            overlay += &dot(at(kept), kept);
        }
        let legend = legend_area(rises);
        overlay += &legend_svg(legend);
        let wanted = by_importance(&kept).into_iter().map(|kept| {
            let (x, y) = at(kept);
            Label { x: x.into(), y: y.into(), text: kept.trial.description.clone() }
        });
        let picture = Area { left: 0.0, top: 50.0, right: SIZE.0 as f64 - 5.0, bottom: 790.0 };
        for label in labels::place(wanted.collect(), picture, &[legend]) {
            overlay += &labels::svg(&label, LABEL);
        }
        root.present()?;
    }
    // plotters turns text by right angles only, so that the labels are added by hand.
    let end = svg.rfind("</svg>").unwrap_or(svg.len());
    svg.insert_str(end, &overlay);
    Ok(svg)
}

fn heading(trials: &[Trial]) -> String {
    // The baseline is kept, but improves on nothing.
    let improvements = trials.iter().skip(1).filter(|trial| trial.is_kept()).count();
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    format!(
        "overnight progress: {} trial{}, {improvements} kept improvement{}",
        trials.len(),
        plural(trials.len()),
        plural(improvements)
    )
}

/// The costs that the chart shows: from a little below the best to a little above the baseline, or
/// as far above it as half of the discarded trials lie, while what was gained still takes a quarter
/// of the height.
fn heights(scored: &[Scored<'_>]) -> Range<f64> {
    let Some(baseline) = scored.iter().find(|scored| scored.trial.is_kept()) else {
        return 0.0..1.0;
    };
    let baseline = baseline.cost;
    let best = scored.iter().fold(baseline, |best, scored| best.min(scored.cost));
    let gain = baseline - best;
    let discarded = scored.iter().filter(|scored| !scored.trial.is_kept());
    let mut excess: Vec<_> = discarded.map(|scored| scored.cost - baseline).collect();
    excess.sort_by(f64::total_cmp);
    let median = excess.get(excess.len().saturating_sub(1) / 2).copied().unwrap_or_default();
    let above = if gain > 0.0 { median.clamp(0.0, 3.0 * gain) } else { median };
    let span = gain + above;
    // A lone baseline has no scale of its own: show it within a hundredth of itself.
    let span = if span > 0.0 { span } else { baseline.abs().max(f64::MIN_POSITIVE) / 100.0 };
    best - 0.15 * span..baseline + above + 0.15 * span
}

/// As many as tell the axis's labels apart, of which there are about ten.
fn decimals(heights: &Range<f64>) -> usize {
    let step = (heights.end - heights.start) / 10.0;
    (-step.log10().floor()).clamp(1.0, 12.0) as usize
}

/// The best so far, from trial to trial up to the last one.
fn steps(kept: &[Scored<'_>], last: f64) -> Vec<(f64, f64)> {
    let until = kept.iter().skip(1).map(Scored::number).chain([last]);
    let steps = kept.iter().zip(until);
    steps.flat_map(|(kept, until)| [kept.number(), until].map(|x| (x, kept.score))).collect()
}

/// The last improvement first, then the baseline, then the others by what they gained.
fn by_importance<'a, 'b>(kept: &'b [Scored<'a>]) -> Vec<&'b Scored<'a>> {
    let gain = |at: usize| match at {
        _ if at + 1 == kept.len() => f64::INFINITY,
        0 => f64::MAX,
        _ => kept[at - 1].cost - kept[at].cost,
    };
    let mut order: Vec<_> = (0..kept.len()).collect();
    order.sort_by(|&a, &b| gain(b).total_cmp(&gain(a)));
    order.into_iter().map(|at| &kept[at]).collect()
}

/// A kept trial's point; browsers show what it stands for when it is pointed at.
fn dot((x, y): (i32, i32), kept: &Scored<'_>) -> String {
    let (number, score) = (kept.trial.trial, kept.score);
    let description = labels::escape(&kept.trial.description);
    format!(
        "<circle cx=\"{x}\" cy=\"{y}\" r=\"5\" fill=\"{KEPT}\" stroke=\"#000000\" \
         stroke-width=\"0.5\"><title>{number}: {score:.6} {description}</title></circle>\n"
    )
}

/// In the right corner of the plot that the line has left: the upper one, where it goes down.
fn legend_area(rises: bool) -> Area {
    let right = f64::from(SIZE.0 - RIGHT_MARGIN) - 10.0;
    let top = if rises { f64::from(SIZE.1) - 160.0 } else { 70.0 };
    Area { left: right - 125.0, top, right, bottom: top + 78.0 }
}

fn legend_svg(area: Area) -> String {
    let Area { left, top, right, bottom } = area;
    let (width, height) = (right - left, bottom - top);
    let hex = |RGBColor(r, g, b): RGBColor| format!("#{r:02x}{g:02x}{b:02x}");
    let (x, mut y) = (left + 20.0, top + 16.0);
    let mut svg = format!(
        "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" rx=\"4\" \
         fill=\"#ffffff\" fill-opacity=\"0.8\" stroke=\"#cccccc\"/>\n"
    );
    let (line, grey) = (hex(LINE), hex(DISCARDED));
    for (name, sign) in [
        ("Discarded", format!("<circle cx=\"{x}\" cy=\"{{y}}\" r=\"3\" fill=\"{grey}\"/>")),
        (
            "Kept",
            format!(
                "<circle cx=\"{x}\" cy=\"{{y}}\" r=\"5\" fill=\"{KEPT}\" stroke=\"#000000\" \
                 stroke-width=\"0.5\"/>"
            ),
        ),
        (
            "Running best",
            format!(
                "<path d=\"M{} {{y}}h24\" stroke=\"{line}\" stroke-opacity=\"0.7\" \
                 stroke-width=\"2\"/>",
                x - 12.0
            ),
        ),
    ] {
        let _ = writeln!(
            svg,
            "{}<text x=\"{}\" y=\"{}\" font-family=\"sans-serif\" font-size=\"12\">{name}</text>",
            sign.replace("{y}", &y.to_string()),
            x + 20.0,
            y + 4.0
        );
        y += 23.0;
    }
    svg
}

/// Whoever looks at the chart while it is written sees the old one or the new one, whole.
fn replace(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    use io::Write;
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    let builder = {
        // As readable as any other file of the study; temporary files are private.
        use std::{fs::Permissions, os::unix::fs::PermissionsExt};
        builder.permissions(Permissions::from_mode(0o666))
    };
    let mut file = builder.prefix(".progress").tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    let _: File = file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::made_up::trial;

    fn scored(trial: &Trial) -> Scored<'_> {
        Scored { trial, score: trial.score().unwrap(), cost: trial.cost().unwrap() }
    }

    /// A night of `trials`, in which every so often, and more often early, one improves.
    fn night(trials: usize) -> Vec<Trial> {
        let mut best = 1.0;
        let mut night = vec![trial(0, Status::Keep, Some(best), "baseline")];
        for number in 1..trials {
            // A hash is random enough for a picture.
            let dice = crate::hash::number_of_parts([&number.to_le_bytes()[..]]);
            let chance = dice as f64 / u64::MAX as f64;
            let description = [
                "MATRIX_LR 0.02 -> 0.034, DEPTH 4 -> 6",
                "wider mlp",
                "rotary base 10000 -> 50000 & \"longer\" <warmdown> of the learning rate",
                "WEIGHT_DECAY 0.1 -> 0.0527",
            ][dice as usize % 4];
            let next = if dice % 13 == 0 {
                trial(number, Status::Crash, None, description)
            } else if dice % 10 < 3 && chance < 1.2 / (1.0 + number as f64 / 40.0) {
                best -= 0.006 * chance * chance / (1.0 + number as f64 / 20.0);
                trial(number, Status::Keep, Some(best), description)
            } else {
                let worse = 0.0002 + 0.012 * chance.powi(3);
                trial(number, Status::Discard, Some(best + worse), description)
            };
            night.push(next);
        }
        night
    }

    fn svg(trials: &[Trial]) -> String {
        let folder = tempfile::tempdir().unwrap();
        write_chart(folder.path(), trials).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::read_to_string(folder.path().join("progress.svg")).unwrap()
    }

    #[test]
    fn nights_of_any_length_have_a_chart() {
        for trials in [0, 1, 2, 6, 100, 400, 1000] {
            let night = if trials == 0 { Vec::new() } else { night(trials) };
            let svg = svg(&night);
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
            let kept = night.iter().filter(|trial| trial.is_kept()).count();
            // One more stands in the legend.
            assert_eq!(svg.matches(KEPT).count(), kept + 1);
            assert!(!svg.contains("<warmdown>") && !svg.contains("NaN"));
            // To look at them: OVERNIGHT_CHARTS=/tmp/charts cargo test --lib chart
            if let Some(folder) = std::env::var_os("OVERNIGHT_CHARTS") {
                std::fs::write(Path::new(&folder).join(format!("{trials}.svg")), &svg).unwrap();
            }
        }
    }

    #[test]
    fn the_last_kept_trial_is_always_named() {
        let mut night = night(100);
        night.push(trial(100, Status::Keep, Some(0.97), "the very last"));
        assert!(svg(&night).contains(">the very last</text>"));
    }

    fn shown(scores: &[(Status, f64)]) -> Range<f64> {
        let trials: Vec<_> = scores
            .iter()
            .enumerate()
            .map(|(number, &(status, val_bpb))| trial(number, status, Some(val_bpb), ""))
            .collect();
        heights(&trials.iter().map(scored).collect::<Vec<_>>())
    }

    #[test]
    fn the_chart_shows_the_way_from_the_baseline_to_the_best() {
        use Status::{Discard, Keep};
        let range = shown(&[(Keep, 1.0), (Discard, 9.0), (Keep, 0.9), (Discard, 0.95)]);
        assert!(range.contains(&0.9) && range.contains(&1.0) && !range.contains(&9.0));
        assert!(range.end - range.start < 0.15, "{range:?}");
        // Without an improvement, half of what was tried shows.
        let range = shown(&[(Keep, 1.0), (Discard, 1.01), (Discard, 1.02), (Discard, 40.0)]);
        assert!(range.contains(&1.0) && range.contains(&1.02) && range.end < 1.1, "{range:?}");
        // All by itself, the baseline has room around it.
        let range = shown(&[(Keep, 1.0)]);
        assert!(range.start < 1.0 && range.end > 1.0, "{range:?}");
    }

    #[test]
    fn the_line_goes_down_in_steps_and_on_to_the_last_trial() {
        let trials = [
            trial(0, Status::Keep, Some(3.0), "baseline"),
            trial(4, Status::Keep, Some(2.0), "better"),
        ];
        let kept = trials.each_ref().map(scored);
        assert_eq!(steps(&kept, 9.0), [(0.0, 3.0), (4.0, 3.0), (4.0, 2.0), (9.0, 2.0)]);
    }
}
