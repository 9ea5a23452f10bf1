// Elements, scales and axes. Texts are set as text, never as mark-up.

const SVG = 'http://www.w3.org/2000/svg';
const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#7a5195', '#8c6d31', '#6b6b6b', '#b22222'];
const DASHES = ['', '6 3', '2 2', '8 3 2 3']; // colours come again after ten: lines then differ by their dashes, points by shape
const SHAPES = ['M-5 0A5 5 0 1 1 5 0A5 5 0 1 1 -5 0Z', 'M-4.5 -4.5H4.5V4.5H-4.5Z', 'M0 -6L5.5 4.5H-5.5Z', 'M0 6L5.5 -4.5H-5.5Z'];

function make(name, attributes = {}, ...children) {
  const element = name in { svg: 1, g: 1, path: 1, line: 1, circle: 1, rect: 1, text: 1 }
    ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(key, value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const number = (value) => {
  if (value === null || value === undefined) return '–';
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
};

function interval([mean, low, high, runs]) {
  const limits = low === null ? ', no interval' : ` (${number(low)} to ${number(high)})`;
  return `${number(mean)}${limits}, ${runs} ${runs === 1 ? 'run' : 'runs'}`;
}

// About `wanted` round numbers from low to high.
function ticks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function decades(low, high) {
  const found = [];
  const every = Math.max(1, Math.ceil(Math.log10(high / low) / 5));
  for (let p = Math.ceil(Math.log10(low)); p <= Math.log10(high); p += every) found.push(10 ** p);
  return found.length ? found : [low, high];
}

// From values to pixels. A range without extent is widened, so that one run can be drawn.
function scale(values, from, to, logarithmic = false) {
  const known = values.filter((v) => v !== null && Number.isFinite(v) && (!logarithmic || v > 0));
  let low = known.reduce((a, b) => Math.min(a, b), Infinity);
  let high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  if (low > high) [low, high] = logarithmic ? [0.1, 1] : [0, 1];
  if (low === high) [low, high] = logarithmic ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10];
  const turn = logarithmic ? Math.log10 : (v) => v;
  const pad = logarithmic ? 0 : (high - low) * 0.04;
  const [a, b] = [turn(low) - pad, turn(high) + pad];
  const place = (v) => from + ((turn(v) - a) / (b - a)) * (to - from);
  place.ticks = (wanted) => (logarithmic ? decades(low, high) : ticks(low - pad, high + pad, wanted));
  place.holds = (v) => v !== null && (!logarithmic || v > 0);
  place.clamp = (v) => Math.min(Math.max(place(v), Math.min(from, to)), Math.max(from, to));
  return place;
}

// An empty plot with both axes: { svg, x, y, layer }.
function frame(width, height, xs, ys, titles, logarithmic = false) {
  const margin = { left: 52, right: 10, top: 10, bottom: 40 };
  const x = scale(xs, margin.left, width - margin.right);
  const y = scale(ys, height - margin.bottom, margin.top, logarithmic);
  const svg = make('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': titles.label });
  for (const value of x.ticks(width / 90)) {
    svg.append(make('line', { class: 'grid', x1: x(value), x2: x(value), y1: margin.top, y2: height - margin.bottom }));
    svg.append(make('text', { class: 'tick', x: x(value), y: height - margin.bottom + 14, 'text-anchor': 'middle' }, number(value)));
  }
  for (const value of y.ticks(height / 45)) {
    svg.append(make('line', { class: 'grid', x1: margin.left, x2: width - margin.right, y1: y(value), y2: y(value) }));
    svg.append(make('text', { class: 'tick', x: margin.left - 6, y: y(value) + 4, 'text-anchor': 'end' }, number(value)));
  }
  svg.append(make('text', { class: 'axis', x: (margin.left + width) / 2, y: height - 6, 'text-anchor': 'middle' }, titles.x));
  const middle = (height - margin.bottom) / 2;
  if (titles.y) svg.append(make('text', { class: 'axis', x: 12, y: middle, 'text-anchor': 'middle', transform: `rotate(-90 12 ${middle})` }, titles.y));
  const layer = make('g');
  svg.append(layer);
  return { svg, x, y, layer };
}

// A path through the points that are there; a gap where one is not.
function path(x, y, xs, ys) {
  let text = '';
  let open = false;
  xs.forEach((value, i) => {
    const there = ys[i] !== undefined && y.holds(ys[i]);
    if (there) text += `${open ? 'L' : 'M'}${x(value).toFixed(1)} ${y(ys[i]).toFixed(1)}`;
    open = there;
  });
  return text;
}

function area(x, y, xs, low, high) {
  const there = xs.map((_, i) => i).filter((i) => y.holds(high[i]) && y.holds(low[i]));
  if (there.length < 2) return '';
  const up = there.map((i) => `${x(xs[i]).toFixed(1)} ${y.clamp(high[i]).toFixed(1)}`);
  const down = there.reverse().map((i) => `${x(xs[i]).toFixed(1)} ${y.clamp(low[i]).toFixed(1)}`);
  return `M${[...up, ...down].join('L')}Z`;
}

// What the pointer is on, in words, beside it.
function hint(event, text) {
  const box = document.getElementById('hint');
  box.textContent = text;
  box.hidden = !text;
  if (!text) return;
  const left = Math.min(event.clientX + 12, document.documentElement.clientWidth - box.offsetWidth - 8);
  box.style.left = `${Math.max(4, left)}px`;
  box.style.top = `${Math.max(4, event.clientY - box.offsetHeight - 10)}px`;
}

const onHint = (text) => ({ pointermove: (event) => hint(event, text), pointerleave: (event) => hint(event, '') });
