const data = JSON.parse(document.getElementById('data').textContent);
const state = { filters: {}, search: '', colour: usualColour(), allRuns: false };

function usualColour() {
  if (data.cells.length <= 12) return 'cell';
  const levels = (i) => new Set(data.cells.map((cell) => cell.labels[i])).size;
  return data.keys.find((_, i) => levels(i) > 1 && levels(i) <= 10) || 'cell';
}

function refresh() {
  filterRows();
  drawCharts();
  listRuns();
}

nameRows();
for (const table of document.querySelectorAll('.klsweep-table table')) {
  sortable(table);
  const box = make('div', { class: 'scroll' });
  table.replaceWith(box);
  box.append(table);
}
linkRows();
buildFilters();
refresh();
let width = window.innerWidth;
window.addEventListener('resize', () => {
  if (window.innerWidth !== width) drawCharts(); // a phone's address bar changes the height only
  width = window.innerWidth;
});
const dialog = document.getElementById('cell');
dialog.addEventListener('close', () => history.replaceState(null, '', location.pathname));
dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
window.addEventListener('hashchange', openAddress);
openAddress();
