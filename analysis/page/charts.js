// The figures: each is drawn anew at the width it has, for the cells that the filters leave.

const BANDS_SHOWN = 12; // of more cells, lines alone
const BARS_SHOWN = 60; // of more, points alone

function colouring(cells) {
  const key = state.colour;
  const of = (cell) => (key === 'cell' ? data.cells[cell].name : data.cells[cell].labels[data.keys.indexOf(key)]);
  const all = [...new Set(data.cells.map((_, i) => of(i)))];
  const places = new Map(all.map((name, i) => [name, i]));
  const style = (name) => {
    const again = Math.floor(places.get(name) / 10) % 4;
    return { colour: COLOURS[places.get(name) % 10], dash: DASHES[again], shape: SHAPES[again] };
  };
  return { style: (cell) => style(of(cell)), legend: [...new Set(cells.map(of))].map((name) => ({ name, ...style(name) })) };
}

function legend(colours) {
  const shown = colours.legend.slice(0, 24);
  const items = shown.map(({ name, colour, dash, shape }) => make('li', {},
    make('svg', { width: 26, height: 12 },
      make('line', { x1: 1, x2: 25, y1: 6, y2: 6, stroke: colour, 'stroke-width': 3, 'stroke-dasharray': dash }),
      make('path', { d: shape, transform: 'translate(13 6)', fill: colour })), ` ${name}`));
  if (colours.legend.length > shown.length) items.push(make('li', {}, `and ${colours.legend.length - shown.length} more`));
  return make('ul', { class: 'legend' }, ...items);
}

// Of the limits of intervals those near what they are around: one wide interval must not flatten everything.
function near(values, limits) {
  const known = values.filter((v) => v !== null);
  const [low, high] = [known.reduce((a, b) => Math.min(a, b), Infinity), known.reduce((a, b) => Math.max(a, b), -Infinity)];
  const room = (high - low || Math.abs(high) || 0.1) * 0.6;
  return limits.filter((v) => v !== null && v > low - room && v < high + room);
}

function bandChart(width, curves, cells, colours) {
  const bands = curves.bands.filter((band) => cells.has(band.cell));
  const few = bands.length <= BANDS_SHOWN;
  const ys = bands.flatMap((b) => b.mean);
  const limits = few ? bands.flatMap((b) => [...b.low, ...b.high]) : [];
  const plot = frame(width, 260, curves.x, [...ys, ...near(ys, limits)], { x: 'update', y: '', label: `${curves.title} over updates` }, curves.log);
  const { svg, x, y, layer } = plot;
  for (const band of bands) {
    const { colour, dash } = colours.style(band.cell);
    const name = data.cells[band.cell].name;
    if (few) {
      layer.append(make('path', { class: 'band', d: area(x, y, curves.x, band.low, band.high), fill: colour }));
    }
    const last = band.mean.reduce((found, v, i) => (v === null ? found : i), 0);
    const text = `${name}: ${interval([band.mean[last], band.low[last], band.high[last], band.n[last]])} at update ${number(curves.x[last])}`;
    const common = { fill: 'none', stroke: colour, 'stroke-width': few ? 2 : 1 };
    const group = make('g', { class: 'curve', click: () => openCell([band.cell]), ...onHint(text) },
      make('path', { ...common, d: path(x, y, curves.x, band.whole || band.mean), 'stroke-dasharray': dash }),
      make('path', { ...common, d: path(x, y, curves.x, band.partial || []), 'stroke-dasharray': '1 4', 'stroke-linecap': 'round' }),
      make('path', { d: path(x, y, curves.x, band.mean), fill: 'none', stroke: 'transparent', 'stroke-width': 12 }));
    layer.append(group);
    const known = curves.x.filter((_, i) => band.mean[i] !== null);
    if (known.length === 1) layer.append(make('circle', { cx: x(known[0]), cy: y(band.mean.find((v) => v !== null)), r: 3, fill: colour }));
  }
  return svg;
}

function cross(plot, point, colour) {
  const { x, y } = plot;
  const [cx, cy] = [x(point.x[0]), y(point.y[0])];
  const bars = [];
  if (point.x[1] !== null) bars.push(make('line', { x1: x.clamp(point.x[1]), x2: x.clamp(point.x[2]), y1: cy, y2: cy }));
  if (point.y[1] !== null) bars.push(make('line', { x1: cx, x2: cx, y1: y.clamp(point.y[1]), y2: y.clamp(point.y[2]) }));
  return make('g', { stroke: colour, 'stroke-width': 1.2, opacity: 0.55 }, ...bars);
}

// Of the points shown those that none of their group exceeds on both, as `charts.py` has it for all; a list per group.
function fronts(points) {
  const over = (a, b) => a.group === b.group && a.x[0] >= b.x[0] && a.y[0] >= b.y[0] && (a.x[0] > b.x[0] || a.y[0] > b.y[0]);
  const best = points.filter((p) => !points.some((other) => over(other, p))).sort((a, b) => a.x[0] - b.x[0]);
  return [...new Set(best.map((p) => p.group))].map((group) => best.filter((p) => p.group === group));
}

function scatterChart(width, scatter, cells, colours) {
  const points = scatter.points.filter((point) => cells.has(point.cell));
  const barred = points.length <= BARS_SHOWN;
  const within = (axis) => {
    const means = points.map((p) => p[axis][0]).concat(scatter.base.map((b) => b[axis === 'x' ? 0 : 1]));
    return [...means, ...(barred ? near(means, points.flatMap((p) => p[axis].slice(1, 3))) : [])];
  };
  const plot = frame(width, 340, within('x'), within('y'), { x: scatter.x, y: scatter.y, label: scatter.title });
  const { svg, x, y, layer } = plot;
  for (const front of scatter.front ? fronts(points) : []) if (front.length > 1) layer.append(make('path', { class: 'front', d: path(x, y, front.map((p) => p.x[0]), front.map((p) => p.y[0])) }));
  for (const base of scatter.base) {
    layer.append(make('rect', { class: 'base', x: x(base[0]) - 5, y: y(base[1]) - 5, width: 10, height: 10, transform: `rotate(45 ${x(base[0])} ${y(base[1])})`, ...onHint(`before training: ${number(base[0])}, ${number(base[1])}`) }));
  }
  if (barred) for (const point of points) layer.append(cross(plot, point, colours.style(point.cell).colour));
  for (const point of points) {
    const { colour, shape } = colours.style(point.cell);
    const partial = point.x[3] < point.planned || point.y[3] < point.planned;
    const text = `${data.cells[point.cell].name}\n${scatter.x} ${interval(point.x)}\n${scatter.y} ${interval(point.y)}${partial ? `\nfewer runs than planned (${point.planned})` : ''}`;
    layer.append(make('path', { class: 'point', d: shape, transform: `translate(${x(point.x[0])} ${y(point.y[0])})`, fill: partial ? 'var(--page)' : colour, stroke: colour, 'stroke-width': 2, click: () => openCell([point.cell]), ...onHint(text) }));
  }
  return svg;
}

function forestChart(width, forest) {
  const rows = forest.contrasts;
  const height = 44 * rows.length + 56;
  const known = rows.flatMap((row) => row.slice(1, 4));
  const x = scale([0, ...known], 12, width - 12);
  const svg = make('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': forest.title });
  for (const value of x.ticks(width / 90)) {
    svg.append(make('line', { class: value === 0 ? 'zero' : 'grid', x1: x(value), x2: x(value), y1: 4, y2: height - 40 }));
    svg.append(make('text', { class: 'tick', x: x(value), y: height - 26, 'text-anchor': 'middle' }, number(value)));
  }
  svg.append(make('text', { class: 'axis', x: width / 2, y: height - 6, 'text-anchor': 'middle' }, `difference, ${forest.x}`));
  rows.forEach(([label, mean, low, high, p], i) => {
    const y = 44 * i + 32;
    const told = p !== null && p < 0.05;
    svg.append(make('text', { class: 'label', x: 12, y: y - 12 }, label));
    if (low !== null) svg.append(make('line', { class: 'whisker', x1: x(low), x2: x(high), y1: y, y2: y }));
    const text = `${label}: ${number(mean)}${low === null ? ', no interval' : ` (${number(low)} to ${number(high)}), p=${number(p)}`}`;
    svg.append(make('circle', { class: told ? 'told' : 'untold', cx: x(mean), cy: y, r: 5, ...onHint(text) }));
  });
  return svg;
}

// The cells of a place that are shown: how many runs did not hold. The interval is of all of them together.
function mapPlace(place, cells) {
  const kept = place.cells.map((_, i) => i).filter((i) => cells.has(place.cells[i]));
  const [k, n, planned] = [0, 1, 2].map((at) => kept.reduce((sum, i) => sum + place.counts[i][at], 0));
  if (!n) return make('td', { class: 'nothing' }, kept.length ? 'not ended' : '');
  const limits = kept.length === place.cells.length ? ` (${number(100 * place.rate[2])} to ${number(100 * place.rate[3])} %)` : ' of the cells shown';
  const text = `${k} of ${n} ended runs${limits}${n < planned ? `, of ${planned} planned` : ''}`;
  return make('td', { style: `--share:${k / n}`, class: 'place' },
    make('button', { type: 'button', title: text, click: () => openCell(kept.map((i) => place.cells[i])), ...onHint(text) }, `${k}/${n}${n < planned ? '*' : ''}`));
}

// Rows and columns with a cell that is shown; null without any.
function mapChart(map, cells) {
  const shown = (place) => place.cells.some((i) => cells.has(i));
  const rows = map.rows.map((_, i) => i).filter((i) => map.grid[i].some(shown));
  const columns = map.columns.map((_, j) => j).filter((j) => map.grid.some((line) => shown(line[j])));
  if (!rows.length) return null;
  const head = make('tr', {}, make('th', {}, ''), ...columns.map((j) => make('th', {}, map.columns[j] === '–' ? 'no β' : `β=${map.columns[j]}`)));
  const body = rows.map((i) => make('tr', {}, make('th', { scope: 'row' }, map.rows[i]), ...columns.map((j) => mapPlace(map.grid[i][j], cells))));
  return make('div', { class: 'scroll' }, make('table', { class: 'map' }, make('thead', {}, head), make('tbody', {}, ...body)));
}

function panel(title, note, drawing) {
  return make('figure', {}, make('figcaption', {}, title), drawing, note ? make('p', { class: 'note' }, note) : null);
}

function grid(heading, panels) {
  return panels.length ? make('div', {}, make('h3', {}, heading), make('div', { class: 'panels' }, ...panels)) : null;
}

function drawCharts() {
  const place = document.getElementById('charts');
  const cells = visibleCells();
  const colours = colouring([...cells]);
  const width = Math.floor(Math.min(560, place.clientWidth));
  const curves = (stale) => data.curves.filter((c) => c.stale === stale).map((c) => panel(c.title,
    [c.log ? 'Geometric mean over seeds.' : '', c.per > 1 ? `Each point is the mean over ${c.per} updates.` : ''].join(' ').trim(), bandChart(width, c, cells, colours)));
  const about = 'Mean over seeds; band: 95 % t interval at each point, drawn for up to 12 cells. Dotted: fewer seeds than planned.';
  place.replaceChildren(...[
    colourChoice(), legend(colours),
    grid('In and out of distribution, reward and KL', data.scatters.map((s) => panel(s.title, s.note + ' Hollow: fewer runs than planned. Diamond: before training.' + (s.points.length > BARS_SHOWN ? ` Bars are drawn for up to ${BARS_SHOWN} cells.` : ''), scatterChart(width, s, cells, colours)))),
    grid(`Effects of axes${cells.size < data.cells.length ? ', of all cells: filters do not change them' : ''}`, data.forests.map((f) => panel(f.title, f.note, make('div', { class: 'tall' }, forestChart(width, f))))),
    grid('Stability', data.maps.map((m) => ({ m, drawing: mapChart(m, cells) })).filter(({ drawing }) => drawing).map(({ m, drawing }) => panel(m.title, m.note, drawing))),
    grid('Learning curves', curves(false)),
    grid('Staleness and what it costs', curves(true)),
    data.curves.length ? make('p', { class: 'note' }, about) : make('p', {}, 'No run has logged anything yet.'),
  ].filter((part) => part !== null));
}

function colourChoice() {
  if (!data.cells.length) return null;
  const choose = make('select', { id: 'colour', change: (event) => { state.colour = event.target.value; drawCharts(); } },
    ...['cell', ...data.keys].map((key) => make('option', { value: key, selected: key === state.colour }, key)));
  return make('label', {}, 'coloured by ', choose);
}
