/* SPDX-License-Identifier: Apache-2.0 */
"use strict";
(() => {
  const NEAR = 26;  // how far from a dot the pointer may be, in units of its chart
  const SVG = "http://www.w3.org/2000/svg";
  const table = document.getElementById("table"), body = table.tBodies[0];
  const tip = document.getElementById("tip");
  const numbers = JSON.parse(document.getElementById("group-data").textContent);
  const rows = [...body.rows];
  const byNumber = new Map(rows.map(row => [Number(row.dataset.row), row]));
  const entries = new Map([...document.querySelectorAll("#outliers li")].map(
    item => [Number(item.dataset.row), item]));
  const nameOf = row => row.cells[0].textContent;
  const linkOf = row => row.cells[0].querySelector("a");

  const panels = [...document.querySelectorAll(".distribution")].map(chart => {
    const strips = JSON.parse(chart.dataset.strips);
    const dots = [...chart.querySelectorAll("circle[data-row]")].map(circle => ({
      circle, row: Number(circle.dataset.row), strip: strips[Number(circle.parentNode.dataset.strip)],
      x: Number(circle.getAttribute("cx")), y: Number(circle.getAttribute("cy"))}));
    const of = new Map();
    for (const dot of dots) of.set(dot.row, [...(of.get(dot.row) || []), dot]);
    return {chart, dots, of, pointers: []};
  });

  // The series under the pointer, in all charts, the table and the list.
  let current = null;
  function show(number) {
    if (number === current) return;
    const mark = (one, on) => one && one.classList.toggle("current", on);
    mark(byNumber.get(current), false);
    mark(entries.get(current), false);
    current = number;
    mark(byNumber.get(current), true);
    mark(entries.get(current), true);
    for (const panel of panels) {
      for (const pointer of panel.pointers) pointer.remove();
      panel.pointers = (panel.of.get(number) || []).map(dot => {
        const pointer = document.createElementNS(SVG, "circle");
        for (const [key, value] of Object.entries({cx: dot.x, cy: dot.y, r: 7, class: "pointer"}))
          pointer.setAttribute(key, value);
        return panel.chart.appendChild(pointer);
      });
    }
  }

  function nearest(panel, event) {
    const box = panel.chart.getBoundingClientRect();
    const scale = panel.chart.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = null, least = NEAR * NEAR;
    for (const dot of panel.dots) {
      if (dot.circle.classList.contains("off")) continue;
      const distance = (dot.x - x) ** 2 + (dot.y - y) ** 2;
      if (distance < least) [best, least] = [dot, distance];
    }
    return best;
  }

  function tell(row, event) {  // text of the table's cells: nothing becomes markup
    const line = (name, words) => {
      const element = document.createElement(name);
      element.textContent = words;
      return element;
    };
    const parts = [line("b", nameOf(row)), line("div", row.cells[1].textContent)];
    const heads = table.tHead.rows[0].cells;
    for (const [place, cell] of [...row.cells].entries()) {
      if (place < 3 || cell.textContent === "n/a") continue;
      if (getComputedStyle(heads[place]).display === "none") continue;
      const unit = heads[place].querySelector("small");
      const words = `${heads[place].querySelector("button").textContent}: ${cell.textContent}`;
      const added = line("div", unit ? `${words} ${unit.textContent}` : words);
      if (cell.classList.contains("out")) added.style.fontWeight = "bold";
      parts.push(added);
    }
    if (linkOf(row)) parts.push(line("i", "click: its report"));
    tip.replaceChildren(...parts);
    tip.hidden = false;
    const x = event.clientX + 16, y = event.clientY + 16;
    tip.style.left = `${x + tip.offsetWidth > innerWidth ? event.clientX - tip.offsetWidth - 12 : x}px`;
    tip.style.top = `${Math.max(4, Math.min(y, innerHeight - tip.offsetHeight - 4))}px`;
  }

  function leave() {
    show(null);
    tip.hidden = true;
  }

  for (const panel of panels) {
    panel.chart.addEventListener("pointermove", event => {
      const dot = nearest(panel, event);
      panel.chart.classList.toggle("near", dot !== null);
      if (dot === null) return leave();
      show(dot.row);
      tell(byNumber.get(dot.row), event);
    });
    panel.chart.addEventListener("pointerleave", leave);
    panel.chart.addEventListener("click", event => {
      const dot = nearest(panel, event), link = dot && linkOf(byNumber.get(dot.row));
      if (link) link.click();
    });
  }
  const over = event => {
    const owner = event.target.closest("[data-row]");
    show(owner ? Number(owner.dataset.row) : null);
  };
  for (const part of [body, document.getElementById("outliers")]) {
    part.addEventListener("pointerover", over);
    part.addEventListener("focusin", over);
    part.addEventListener("pointerleave", leave);
  }

  // Sorting: a column up, down; what is not known stays last.
  const words = new Intl.Collator("en", {numeric: true});
  function key(row, place) {
    const values = numbers[place];
    if (values) return values[Number(row.dataset.row)];
    const text = row.cells[place].textContent;
    if (place === 2) return text.startsWith("▲") ? Number(text.slice(1)) : text ? null : 0;
    return text === "n/a" ? null : text;
  }

  function sort(place, down) {
    const keys = new Map(rows.map(row => [row, key(row, place)]));
    const compare = (a, b) => typeof a === "number" ? a - b : words.compare(a, b);
    const sorted = [...rows].sort((first, second) => {
      const a = keys.get(first), b = keys.get(second);
      if (a === null || b === null) return (a === null) - (b === null);
      return (down ? -1 : 1) * compare(a, b) || first.dataset.row - second.dataset.row;
    });
    body.replaceChildren(...sorted);
  }

  for (const [place, head] of [...table.tHead.rows[0].cells].entries())
    head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const down = before === "none" ? place === 2 || place in numbers : before === "ascending";
      for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sort(place, down);
    });

  // Finding: rows that are not wanted go, their dots fade.
  const wanted = document.getElementById("wanted"), verdict = document.getElementById("verdict");
  const only = document.getElementById("only"), count = document.getElementById("count");
  function filter() {
    const text = wanted.value.toLowerCase();
    let n = 0;
    for (const row of rows) {
      const keep = nameOf(row).toLowerCase().includes(text)
        && (!verdict.value || row.cells[1].textContent === verdict.value)
        && (!only.checked || row.cells[2].textContent.startsWith("▲"));
      row.hidden = !keep;
      n += keep;
    }
    for (const panel of panels)
      for (const dot of panel.dots) dot.circle.classList.toggle("off", byNumber.get(dot.row).hidden);
    count.textContent = n === rows.length ? "" : `${n} of ${rows.length} series`;
  }
  for (const control of [wanted, verdict, only]) control.addEventListener("input", filter);
  const all = document.getElementById("all");
  all.addEventListener("input", () => table.classList.toggle("whole", all.checked));
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details")) folded.open = true;
  });
  filter();
  all.dispatchEvent(new Event("input"));
})();
