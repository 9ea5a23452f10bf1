// What is behind a row or a point: the runs of its cells, their files and their curves.

const address = (cells) => `cells=${[...new Set(cells.map((i) => data.cells[i].id))].map(encodeURIComponent).join(',')}`;

function openCell(cells) {
  const dialog = document.getElementById('cell');
  const runs = data.runs.map((run, i) => i).filter((i) => cells.includes(data.runs[i].cell));
  const names = [...new Set(cells.map((i) => data.cells[i].name))];
  const close = make('button', { type: 'button', class: 'close', 'aria-label': 'close', click: () => dialog.close() }, '×');
  const ids = [...new Set(cells.map((i) => data.cells[i].id))];
  dialog.replaceChildren(close, make('h2', {}, names.slice(0, 4).join('; ') + (names.length > 4 ? `; and ${names.length - 4} more` : '')),
    make('p', { class: 'note' }, ids.slice(0, 4).join(' ')), runTable(runs, false, cells.length > 1));
  if (!dialog.open) dialog.showModal();
  history.replaceState(null, '', `#${address(cells)}`);
  const width = Math.floor(Math.min(460, dialog.clientWidth - 24));
  const panels = data.curves.map((curves) => ({ curves, drawing: seedChart(width, curves, runs) })).filter(({ drawing }) => drawing);
  dialog.append(make('div', { class: 'panels' }, ...panels.map(({ curves, drawing }) => panel(curves.title, '', drawing))));
  dialog.scrollTop = 0;
}

// A line for each run.
function seedChart(width, curves, runs) {
  const own = runs.filter((run) => run in curves.runs);
  if (!own.length) return null;
  const { svg, x, y, layer } = frame(width, 200, curves.x, own.flatMap((run) => curves.runs[run]), { x: 'update', y: '', label: `${curves.title}, each run` }, curves.log);
  own.forEach((run) => {
    const values = curves.runs[run];
    const colour = COLOURS[runs.indexOf(run) % 10];
    const text = `seed ${data.runs[run].seed}, ${data.runs[run].state}, ${data.runs[run].id}`;
    layer.append(make('path', { d: path(x, y, curves.x, values), fill: 'none', stroke: colour, 'stroke-width': 1.5, ...onHint(text) }));
    const known = curves.x.map((_, j) => j).filter((j) => y.holds(values[j]));
    if (known.length === 1) layer.append(make('circle', { cx: x(curves.x[known[0]]), cy: y(values[known[0]]), r: 3, fill: colour, ...onHint(text) }));
  });
  return svg;
}

// A page that was opened at `#cells=…` opens that.
function openAddress() {
  const found = /^#cells=(.+)$/.exec(location.hash);
  if (!found) return;
  const ids = new Set(found[1].split(',').map(decodeURIComponent));
  const cells = data.cells.map((_, i) => i).filter((i) => ids.has(data.cells[i].id));
  if (cells.length) openCell(cells);
}
