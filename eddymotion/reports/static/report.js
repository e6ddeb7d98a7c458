/* SPDX-License-Identifier: Apache-2.0 */
"use strict";
(() => {
  const FLICKER_MS = 600, PLAY_MS = 250;
  const NAMES = {before: "before", after: "after", predicted: "prediction"};
  const TINTS = {before: "#ffb000", after: "#56b4e9", predicted: "#7fe0a8"};
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const fixed = (value, digits) => value == null ? "n/a" : value.toFixed(digits);
  const degrees = value => value == null ? null : value * 180 / Math.PI;

  class Series {
    constructor(article) {
      this.root = article;
      this.data = JSON.parse(document.getElementById(article.id + "-data").textContent);
      this.find = selector => article.querySelector(selector);
      this.all = selector => [...article.querySelectorAll(selector)];
      this.images = {};
      for (const image of this.all("img.sprite")) this.images[image.dataset.sheet] = image;
      this.flicker = !still;
      this.phase = 0;
      this.playing = false;
      this.linkBar();
      this.linkCharts();
      this.linkTable();
      this.linkViewer();
      this.linkSphere();
      this.pin(Number(this.find(".slider").value));
    }

    // What is shown: `pinned` stays, `current` follows the pointer.
    pin(volume) {
      this.pinned = Math.min(Math.max(volume, 0), this.data.n - 1);
      this.show(this.pinned);
    }

    show(volume) {
      this.current = volume;
      this.find(".slider").value = volume;
      this.find(".which").textContent = `volume ${volume} of 0–${this.data.n - 1}`;
      this.find(".readout").innerHTML = this.describe(volume);
      for (const chart of this.all(".chart.linked")) this.moveCursor(chart, volume);
      for (const mark of this.all(".sphere .direction"))
        mark.classList.toggle("current", Number(mark.dataset.volume) === volume);
      for (const button of this.all(".gallery button"))
        button.classList.toggle("current", Number(button.dataset.go) === volume);
      this.draw();
    }

    describe(volume) {  // numbers only: nothing from a file gets in here as text
      const cell = (name, digits, turn) => {
        const value = this.data.columns[name][volume];
        return fixed(turn ? degrees(value) : value, digits);
      };
      const three = (kind, digits, turn) =>
        ["x", "y", "z"].map(axis => cell(`${kind}_${axis}`, digits, turn)).join(", ");
      const offset = this.data.columns.eddy_offset[volume] === null ? [] :
        [`eddy-current offset <b>${cell("eddy_offset", 2)}</b> mm`];
      const head = this.data.columns.framewise_displacement_head[volume] !== null;
      const displaced = `FD <b>${cell(head ? "framewise_displacement_head" : "framewise_displacement", 2)}</b> mm`;
      const slices = this.data.slices[volume] || [];
      const lost = slices.length ? ` (${slices.slice(0, 12).join(", ")}${slices.length > 12 ? "…" : ""})` : "";
      const parts = [
        `<b>b=${cell("bval", 0)}</b>`,
        `translation <b>${this.data.head.map(row => fixed(row[volume], 2)).join(", ")}</b> mm`,
        `rotation <b>${three("rot", 2, true)}</b>°`,
        ...offset,
        displaced,
        `correlation <b>${cell("hmc_xcorr", 3)}</b>`,
        `lost slices <b>${cell("outlier_slices", 0)}</b>${lost}`,
      ];
      if (this.data.spoilt.includes(volume)) parts.push("<b>beyond repair</b>");
      return parts.join(" · ");
    }

    linkBar() {
      const slider = this.find(".slider");
      slider.addEventListener("input", () => this.pin(Number(slider.value)));
      for (const button of this.all("[data-step]"))
        if (button.tagName === "BUTTON")
          button.addEventListener("click", () => this.pin(this.pinned + Number(button.dataset.step)));
      for (const button of this.all("[data-go]"))
        button.addEventListener("click", () => {
          this.pin(Number(button.dataset.go));
          const viewer = this.find(".viewer");
          if (viewer && button.closest(".gallery")) viewer.scrollIntoView({block: "center"});
        });
    }

    linkCharts() {
      for (const chart of this.all(".chart.linked")) {
        const order = JSON.parse(chart.dataset.order);
        const left = Number(chart.dataset.left), step = Number(chart.dataset.step);
        const at = event => {
          const box = chart.getBoundingClientRect();
          const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
          const column = Math.floor((x - left) / step);
          return column >= 0 && column < order.length ? order[column] : null;
        };
        chart.addEventListener("pointermove", event => {
          const volume = at(event);
          if (volume !== null && volume !== this.current) this.show(volume);
        });
        chart.addEventListener("pointerleave", () => this.show(this.pinned));
        chart.addEventListener("click", event => {
          const volume = at(event);
          if (volume !== null) this.pin(volume);
        });
        chart.columnOf = new Map(order.map((volume, column) => [volume, column]));
      }
    }

    moveCursor(chart, volume) {
      const cursor = chart.querySelector(".cursor"), column = chart.columnOf.get(volume);
      cursor.setAttribute("visibility", column === undefined ? "hidden" : "visible");
      if (column !== undefined)
        cursor.setAttribute("x", Number(chart.dataset.left) + column * Number(chart.dataset.step));
    }

    linkTable() {
      const body = this.find(".confounds tbody");
      if (body) body.addEventListener("click", event => {
        const row = event.target.closest("tr");
        if (row) this.pin([...body.rows].indexOf(row));
      });
    }

    linkViewer() {
      this.canvas = this.find("canvas.main");
      if (!this.canvas) return;
      this.mode = this.find(".mode");
      this.mode.addEventListener("change", () => this.draw());
      this.outlined = this.find(".outlined");
      this.outlined.addEventListener("change", () => this.draw());
      const flicker = this.find("button.flicker"), play = this.find("button.play");
      const label = () => {
        flicker.textContent = this.flicker ? "stop flicker" : "flicker";
        flicker.setAttribute("aria-pressed", this.flicker);
        play.textContent = this.playing ? "stop playing" : "play volumes";
        play.setAttribute("aria-pressed", this.playing);
      };
      flicker.addEventListener("click", () => { this.flicker = !this.flicker; label(); });
      play.addEventListener("click", () => { this.playing = !this.playing; label(); });
      label();
      this.thumbs = this.all(".gallery button").map(
        button => ({canvas: button.querySelector("canvas"), volume: Number(button.dataset.go)}));
      for (const image of Object.values(this.images))
        image.decode().then(() => this.draw(), () => {});
    }

    next() {  // the volume after the current one, in its shell if wanted
      if (!this.find(".same-shell").checked) return (this.pinned + 1) % this.data.n;
      const group = this.data.groups.find(members => members.includes(this.pinned)) || [this.pinned];
      return group[(group.indexOf(this.pinned) + 1) % group.length];
    }

    tick() {
      if (!this.canvas || this.root.hidden || !this.flicker) return;
      this.phase = 1 - this.phase;
      this.draw();
    }

    step() {
      if (this.playing && !this.root.hidden) this.pin(this.next());
    }

    draw() {
      if (!this.canvas) return;
      const pairs = {flicker: ["before", "after"], predicted: ["after", "predicted"]};
      const mode = this.printing ? "pair" : this.mode.value;  // paper does not flicker
      if (mode === "pair") this.paint(this.canvas, this.current, ["before", "after"]);
      else this.paint(this.canvas, this.current, [pairs[mode] ? pairs[mode][this.phase] : mode]);
      this.canvas.dataset.shown = `${this.current} ${mode} ${this.phase}`;
      for (const {canvas, volume} of this.thumbs || [])
        this.paint(canvas, volume, this.printing ? ["before", "after"] : [["before", "after"][this.phase]], true);
    }

    print(printing) {
      this.printing = printing;
      this.draw();
      for (const folded of this.all("details"))
        if (!folded.querySelector(".confounds")) {
          if (printing) folded.dataset.was = folded.open;
          folded.open = printing || folded.dataset.was === "true";
        }
    }

    paint(canvas, volume, kinds, small) {
      const {width, height} = this.data.sheets[kinds[0]];
      const wanted = small ? 2 : kinds.length > 1 ? 3 : 4;
      const scale = Math.max(1, Math.min(wanted, Math.floor(2200 / (width * kinds.length))));
      const gap = kinds.length > 1 ? 4 : 0;
      const total = (width * kinds.length + gap * (kinds.length - 1)) * scale;
      if (canvas.width !== total) canvas.width = total;
      if (canvas.height !== height * scale) canvas.height = height * scale;
      const context = canvas.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.fillStyle = "#000";
      context.fillRect(0, 0, canvas.width, canvas.height);
      kinds.forEach((kind, number) => {
        const image = this.images[kind], columns = this.data.sheets[kind].columns;
        const x = (volume % columns) * width, y = Math.floor(volume / columns) * height;
        context.setTransform(scale, 0, 0, scale, number * (width + gap) * scale, 0);
        context.imageSmoothingQuality = "high";
        if (image.complete) context.drawImage(image, x, y, width, height, 0, 0, width, height);
        if (this.outlined.checked) this.paintOutline(context, scale);
        this.paintWords(context, kind, width * (small ? 0.036 : kinds.length > 1 ? 0.032 : 0.02));
      });
    }

    paintOutline(context, scale) {
      if (!this.outline) {
        this.outline = new Path2D();
        for (const [x0, y0, x1, y1] of this.data.outline) {
          this.outline.moveTo(x0, y0);
          this.outline.lineTo(x1, y1);
        }
      }
      context.strokeStyle = "rgba(255, 160, 0, 0.75)";
      context.lineWidth = 1 / scale;
      context.stroke(this.outline);
    }

    paintWords(context, kind, size) {
      context.font = `600 ${size}px system-ui, sans-serif`;
      context.fillStyle = TINTS[kind];
      context.fillText(NAMES[kind], 3, size + 1);
      context.fillStyle = "#bbb";
      for (const plane of ["coronal", "axial"]) {
        const [left, top, width, tall] = this.data.boxes[plane];
        context.fillText("L", left + 1, top + tall / 2);
        context.fillText("R", left + width - size * 0.8, top + tall / 2);
      }
    }

    linkSphere() {
      const sphere = this.find(".sphere");
      if (!sphere) return;
      let view = JSON.parse(sphere.dataset.view), from = null;
      const points = new Map(JSON.parse(sphere.dataset.points).map(row => [row[0], row.slice(1)]));
      const radius = Number(sphere.dataset.radius), middle = sphere.viewBox.baseVal.width / 2;
      const dot = (row, point) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2];
      const place = point => [middle + radius * dot(view[0], point),
                              middle - radius * dot(view[1], point), dot(view[2], point)];
      const put = (element, values) => {
        for (const [key, value] of Object.entries(values)) element.setAttribute(key, value.toFixed(2));
      };
      const project = () => {
        for (const mark of sphere.querySelectorAll(".direction")) {
          const point = points.get(Number(mark.dataset.volume));
          const [x0, y0] = place(point.slice(0, 3)), [x1, y1, depth] = place(point.slice(3));
          put(mark.querySelector("line"), {x1: x0, y1: y0, x2: x1, y2: y1});
          const [ring, spot] = mark.querySelectorAll("circle");
          put(ring, {cx: x0, cy: y0});
          put(spot, {cx: x1, cy: y1});
          mark.setAttribute("opacity", depth >= 0 ? 1 : 0.4);
        }
        for (const axis of sphere.querySelectorAll("[data-axis]")) {
          const unit = [0, 0, 0];
          unit[Number(axis.dataset.axis)] = axis.tagName === "line" ? 1 : 1.07;
          const [x, y] = place(unit);
          put(axis, axis.tagName === "line" ? {x2: x, y2: y} : {x: x, y: y + 4});
        }
      };
      const turn = (a, b, angle) => {
        const c = Math.cos(angle), s = Math.sin(angle), rows = view.map(row => [...row]);
        for (let k = 0; k < 3; k++) {
          view[a][k] = c * rows[a][k] - s * rows[b][k];
          view[b][k] = s * rows[a][k] + c * rows[b][k];
        }
      };
      sphere.addEventListener("pointerdown", event => {
        from = [event.clientX, event.clientY];
        sphere.setPointerCapture(event.pointerId);
      });
      sphere.addEventListener("pointermove", event => {
        if (!from) return;
        turn(0, 2, -(event.clientX - from[0]) / 150);
        turn(1, 2, (event.clientY - from[1]) / 150);
        from = [event.clientX, event.clientY];
        project();
      });
      for (const end of ["pointerup", "pointercancel"])
        sphere.addEventListener(end, () => { from = null; });
      sphere.addEventListener("pointerover", event => {
        const mark = event.target.closest(".direction");
        if (mark && !from) this.show(Number(mark.dataset.volume));
      });
      sphere.addEventListener("pointerleave", () => this.show(this.pinned));
    }
  }

  const series = [...document.querySelectorAll("article.series")].map(article => new Series(article));
  const tabs = [...document.querySelectorAll(".tabs button")];

  function choose(id) {
    for (const one of series) one.root.hidden = one.root.id !== id;
    for (const tab of tabs) tab.setAttribute("aria-selected", tab.dataset.series === id);
  }

  function follow() {  // a link to a part of a series opens its tab
    const name = decodeURIComponent(location.hash.slice(1));
    const owner = series.find(one => name && (name === one.root.id || name.startsWith(one.root.id + "-")));
    if (!owner || !owner.root.hidden) return;
    choose(owner.root.id);
    const target = document.getElementById(name);
    if (target) target.scrollIntoView();
  }

  if (tabs.length > 1) {
    document.body.classList.add("tabbed");  // the tab has the name
    choose(tabs[0].dataset.series);
  }
  for (const tab of tabs) tab.addEventListener("click", () => choose(tab.dataset.series));
  addEventListener("hashchange", follow);
  follow();
  setInterval(() => { if (!document.hidden) series.forEach(one => one.tick()); }, FLICKER_MS);
  setInterval(() => { if (!document.hidden) series.forEach(one => one.step()); }, PLAY_MS);
  addEventListener("beforeprint", () => series.forEach(one => one.print(true)));
  addEventListener("afterprint", () => series.forEach(one => one.print(false)));
  addEventListener("keydown", event => {
    if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName) || event.altKey || event.ctrlKey || event.metaKey) return;
    const shown = series.find(one => !one.root.hidden);
    const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (shown && by) { shown.pin(shown.pinned + by); event.preventDefault(); }
  });
})();
