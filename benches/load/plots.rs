//! The results as pictures: for a figure, a panel of each piece of work with a bar for each proxy. The bar
//! is the median, the line on it goes from the least to the most.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Outcome;
use super::peers::Peer;
use super::report::scaled;
use super::results::{Figure, Results, Spread};
use super::work::Work;

/// What has become of a plot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drawn {
    Something,
    /// There is no value to draw, and no file.
    Nothing,
}

/// Draws `figure` of all `works` into the file `path`.
pub(crate) fn draw(
    path: &Path,
    figure: Figure,
    works: &[Work],
    results: &Results,
) -> Outcome<Drawn> {
    let panels: Vec<_> = works
        .iter()
        .map(|work| Panel::new(work, figure, results))
        .filter(|panel| !panel.bars.is_empty())
        .collect();
    if panels.is_empty() {
        return Ok(Drawn::Nothing);
    }
    let height = panels.iter().map(Panel::height).sum::<i32>();
    let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    area.fill(&WHITE).map_err(in_words)?;
    let mut top = 0;
    for panel in &panels {
        panel.draw(&area, top).map_err(in_words)?;
        top += panel.height();
    }
    area.present().map_err(in_words)?;
    Ok(Drawn::Something)
}

struct Panel {
    title: String,
    figure: Figure,
    bars: Vec<(Peer, Spread)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Done<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

impl Panel {
    fn new(work: &Work, figure: Figure, results: &Results) -> Self {
        let bar = |peer: &Peer| Some((*peer, results.spread(&work.name, *peer, figure)?));
        Self {
            title: format!("{}: {}", work.title, figure.name()),
            figure,
            bars: work.peers.iter().filter_map(bar).collect(),
        }
    }

    fn height(&self) -> i32 {
        HEAD + ROW * self.bars.len() as i32 + GAP
    }

    fn draw<'a>(&self, area: &Area<'a>, top: i32) -> Done<'a> {
        let style = |size| TextStyle::from(("sans-serif", size)).color(&BLACK);
        let right = style(13).pos(Pos::new(HPos::Right, VPos::Center));
        let left = style(13).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(self.title.clone(), (GAP, top + GAP), style(15)))?;
        let longest = self.bars.iter().map(|(_, spread)| spread.most);
        let scale = f64::from(BAR) / longest.fold(f64::MIN_POSITIVE, f64::max);
        let x = |value: f64| LABEL + (value * scale) as i32;
        for (row, (peer, spread)) in self.bars.iter().enumerate() {
            let y = top + HEAD + ROW * row as i32;
            let middle = y + ROW / 2;
            let color = match peer {
                Peer::PingoraMcp | Peer::TwoThreads | Peer::HundredBackends => OURS,
                Peer::Direct | Peer::BarePingora | Peer::Nginx | Peer::HaProxy | Peer::Envoy => {
                    OTHERS
                }
            };
            let corners = [(LABEL, y + 3), (x(spread.median), y + ROW - 3)];
            area.draw(&Rectangle::new(corners, color.filled()))?;
            let line = vec![(x(spread.least), middle), (x(spread.most), middle)];
            area.draw(&PathElement::new(line, BLACK))?;
            let name = (LABEL - GAP, middle);
            area.draw(&Text::new(peer.name(), name, right.clone()))?;
            let value = (x(spread.most) + GAP, middle);
            area.draw(&Text::new(
                scaled(self.figure, *spread),
                value,
                left.clone(),
            ))?;
        }
        Ok(())
    }
}

fn in_words(error: impl std::fmt::Display) -> super::Problem {
    format!("a plot cannot be drawn: {error}").into()
}

const WIDTH: i32 = 860;
const LABEL: i32 = 190;
const BAR: i32 = 430;
const HEAD: i32 = 32;
const ROW: i32 = 22;
const GAP: i32 = 8;

const OURS: RGBColor = RGBColor(246, 130, 31);
const OTHERS: RGBColor = RGBColor(160, 170, 185);
