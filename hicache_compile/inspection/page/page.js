"use strict";
const search = document.getElementById("search");
const rows = [...document.querySelectorAll("#sites tbody tr")];
const named = [...document.querySelectorAll(".map .row")];

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (text) => words.every((word) => text.toLowerCase().includes(word));
  let shown = 0;
  for (const row of rows) {
    row.hidden = !fits(row.dataset.name);
    shown += !row.hidden;
  }
  for (const element of named) element.classList.toggle("faded", words.length > 0 && !fits(element.dataset.name));
  document.getElementById("hits").textContent = words.length ? `${shown} of ${rows.length}` : "";
}

function sortBy(heading, column) {
  const down = heading.getAttribute("aria-sort") !== "descending";
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
  const order = (a, b) => isNaN(value(a)) ? value(a).localeCompare(value(b), undefined, { numeric: true }) : value(a) - value(b);
  rows.sort((a, b) => (down ? -1 : 1) * order(a, b));
  document.querySelector("#sites tbody").append(...rows);
}

search?.addEventListener("input", filter);
document.querySelectorAll("#sites th").forEach((heading, column) =>
  heading.querySelector("button").addEventListener("click", () => sortBy(heading, column)));
