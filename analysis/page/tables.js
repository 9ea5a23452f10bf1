// Tables that sort by a click on a heading, filters that choose rows, and the list of runs.

const RUNS_AT_ONCE = 100;

function sortable(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  rows.forEach((row, i) => { row.dataset.place = i; });
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if (rows.length && rows.every((row) => row.cells[column].matches('.label, .name'))) heading.classList.add('label');
    const button = make('button', { type: 'button', click: () => sort(table, rows, heading, column) }, ...heading.childNodes);
    heading.replaceChildren(button);
  });
}

// First the other way than now: ascending, descending, as planned.
function sort(table, rows, heading, column) {
  const order = { ascending: 'descending', descending: 'none' }[heading.getAttribute('aria-sort')] || 'ascending';
  for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
  heading.setAttribute('aria-sort', order);
  const sign = order === 'descending' ? -1 : 1;
  const sorted = [...rows];
  if (order !== 'none') sorted.sort((a, b) => compareCells(a.cells[column], b.cells[column], sign));
  table.tBodies[0].append(...sorted);
}

// Numbers by size before texts; what is missing comes last either way.
function compareCells(a, b, sign) {
  const [x, y] = [a, b].map((cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    const value = text === '' ? NaN : Number(text);
    return { text, value, missing: text === '' || text === '–' };
  });
  if (x.missing || y.missing) return x.missing - y.missing;
  const numbers = !Number.isNaN(x.value) && !Number.isNaN(y.value);
  return sign * (numbers ? x.value - y.value : x.text.localeCompare(y.text, undefined, { numeric: true }));
}

// A filter for each label that differs between cells; rows, runs and figures follow it, findings and effects do not.
function buildFilters() {
  const form = document.getElementById('filters');
  if (data.cells.length < 2) return;
  data.keys.forEach((key, i) => {
    const levels = [...new Set(data.cells.map((cell) => cell.labels[i]))];
    if (levels.length < 2) return;
    levels.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    const choose = make('select', { name: key, change: (event) => { state.filters[i] = event.target.value; refresh(); } },
      make('option', { value: '' }, 'all'), ...levels.map((level) => make('option', { value: `=${level}` }, level)));
    form.append(make('label', {}, `${key} `, choose));
  });
  form.append(make('label', {}, 'contains ', make('input', { type: 'search', id: 'search', input: (event) => { state.search = event.target.value.toLowerCase(); refresh(); } })));
  form.append(make('output', { id: 'shown' }));
  form.addEventListener('submit', (event) => event.preventDefault());
}

function visibleCells() {
  const words = state.search.split(/\s+/).filter(Boolean);
  const fits = (cell) => Object.entries(state.filters).every(([i, level]) => !level || cell.labels[i] === level.slice(1))
    && words.every((word) => `${cell.name} ${cell.id} ${cell.labels.join(' ')}`.toLowerCase().includes(word));
  return new Set(data.cells.map((cell, i) => (fits(cell) ? i : -1)).filter((i) => i >= 0));
}

function filterRows() {
  const cells = visibleCells();
  for (const row of document.querySelectorAll('#comparison tbody tr')) {
    const behind = data.tables.comparison[row.dataset.place];
    row.hidden = behind.length > 0 && !behind.some((run) => cells.has(data.runs[run].cell));
  }
  const shown = document.getElementById('shown');
  const about = cells.size < data.cells.length ? '; findings and effects of axes are of all' : '';
  if (shown) shown.textContent = `${cells.size} of ${data.cells.length} cells${about}`;
}

// In front of each row what it is called in words: at the width of a phone it stands for all labels.
function nameRows() {
  const head = document.querySelector('#comparison thead tr');
  head.prepend(make('th', { class: 'name' }, 'cell'));
  [...document.querySelectorAll('#comparison tbody tr')].forEach((row, i) => {
    const names = [...new Set(data.tables.comparison[i].map((run) => data.cells[data.runs[run].cell].name))];
    const labels = [...row.querySelectorAll('.label')].map((cell) => cell.textContent).filter((text) => text && text !== '–');
    row.prepend(make('td', { class: 'name' }, names.length === 1 ? names[0] : labels.join(' ')));
  });
}

// The number of runs in each row opens them; without that column, its first label.
function linkRows() {
  const titles = [...document.querySelectorAll('#comparison th')].map((heading) => heading.textContent);
  const column = Math.max(0, titles.indexOf('runs'));
  for (const row of document.querySelectorAll('#comparison tbody tr')) {
    const behind = data.tables.comparison[row.dataset.place];
    if (!behind.length) continue;
    const cells = [...new Set(behind.map((run) => data.runs[run].cell))];
    const place = row.cells[column];
    const open = (event) => { event.preventDefault(); openCell(cells); };
    place.replaceChildren(make('a', { href: `#${address(cells)}`, click: open }, ...place.childNodes));
  }
}

function runLinks(run) {
  const link = (name, text) => make('a', { href: `${run.at}/${name}` }, text);
  const parts = run.files.length ? [link('', run.id), ...run.files.map((name) => link(name, name))] : [run.id];
  return parts.flatMap((part, i) => (i ? [' ', part] : [part]));
}

function runTable(runs, isList, withCell = isList) {
  const titles = [...(withCell ? ['cell'] : []), 'seed', 'state', 'files', ...data.metrics];
  const rows = runs.map((place, i) => {
    const run = data.runs[place];
    const cell = withCell ? [make('td', {}, make('a', { href: `#${address([run.cell])}`, click: (event) => { event.preventDefault(); openCell([run.cell]); } }, data.cells[run.cell].name))] : [];
    const line = isList ? null : make('span', { class: 'dot', style: `background:${COLOURS[i % 10]}` }); // as its curves
    return make('tr', {}, ...cell, make('td', {}, line || '', String(run.seed)),
      make('td', {}, make('span', { class: `state ${run.state}` }, run.state), run.note ? ` ${run.note}` : ''),
      make('td', { class: 'files' }, ...runLinks(run)),
      ...run.metrics.map((value) => make('td', { 'data-value': value }, value === null ? '–' : value.toFixed(3))));
  });
  const table = make('table', {}, make('thead', {}, make('tr', {}, ...titles.map((title) => make('th', {}, title)))), make('tbody', {}, ...rows));
  sortable(table);
  return make('div', { class: 'scroll' }, table);
}

function listRuns() {
  const cells = visibleCells();
  const runs = data.runs.map((run, i) => i).filter((i) => cells.has(data.runs[i].cell));
  const place = document.getElementById('run-list');
  if (!runs.length) return place.replaceChildren(make('p', {}, 'There are no runs.'));
  const shown = state.allRuns ? runs : runs.slice(0, RUNS_AT_ONCE);
  const more = runs.length - shown.length;
  const all = more ? make('button', { type: 'button', click: () => { state.allRuns = true; listRuns(); } }, `show ${more} more`) : null;
  return place.replaceChildren(runTable(shown, true), ...(all ? [all] : []));
}
