"use strict";

// A click on a header sorts its table: better values first, then reversed. Cells without a value stay last.
const OTHER = { ascending: "descending", descending: "ascending" };

function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const difference = Number(a) - Number(b);
  return sign * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const order = head.ariaSort === "none" ? head.dataset.first : OTHER[head.ariaSort];
      const value = (row) => row.cells[column]?.dataset.value ?? ""; // a cell may span several columns
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b), sign));
      table.tBodies[0].append(...rows);
      for (const other of heads) other.ariaSort = other === head ? order : "none";
    });
  });
}

// A link to a folded section opens it.
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  target?.querySelector("details")?.setAttribute("open", "");
  target?.scrollIntoView();
}
addEventListener("hashchange", unfold);
if (location.hash) unfold();

// The hint below a table is shown only where the table is wider than its container.
const watcher = new ResizeObserver((entries) => {
  for (const { target } of entries) target.classList.toggle("overflows", target.scrollWidth > target.clientWidth + 1);
});
for (const container of document.querySelectorAll(".scroll")) {
  watcher.observe(container);
  container.addEventListener("scroll", () => {
    container.classList.toggle("ended", container.scrollLeft + container.clientWidth >= container.scrollWidth - 4);
  });
}
