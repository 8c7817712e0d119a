"use strict";
(() => {
  const list = JSON.parse(document.getElementById("slow-data").textContent);
  const box = document.getElementById("slow-list");
  const view = box.querySelector(".window");
  const body = view.querySelector("tbody");
  const find = box.querySelector("input");
  const count = box.querySelector("output");
  const missing = box.querySelector(".missing");
  const total = list.names.length;
  const votes = list.votes.map((seeds) => seeds.split("1").length - 1);
  const compare = new Intl.Collator(undefined, {numeric: true}).compare;
  const className = (label) => (label < 0 ? "–" : list.classes[label]); // below 0: not known
  const texts = list.names.map((name, i) => `${name}\n${className(list.labels[i])}`.toLowerCase());

  // What a column sorts by, of image i; the first click sorts names upwards and numbers downwards.
  const keys = {
    name: (i) => list.names[i],
    label: (i) => className(list.labels[i]),
    row: (i) => list.rows[i],
    loss: (i) => list.losses[i],
    probability: (i) => list.probability[i],
    predicted: (i) => className(list.predicted[i]),
    votes: (i) => votes[i],
  };
  let sorted = {key: "votes", up: false};
  let shown = [...Array(total).keys()]; // the images in the table, in its order
  let drawn = "";

  function make(tag, text, title) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (title) made.title = title;
    return made;
  }

  // A name of many letters loses some in the middle: folder and number are at the ends.
  function shortened(text, most) {
    const letters = [...text];
    if (letters.length <= most) return text;
    const head = Math.floor((most - 1) / 2);
    return letters.slice(0, head).join("") + "…" + letters.slice(letters.length - (most - 1 - head)).join("");
  }

  const loaded = new Set();
  function picture(sheets, place, words) {
    const each = sheets.across * sheets.across;
    const file = `${list.folder}/${sheets.files[Math.floor(place / each)]}`;
    if (!loaded.has(file)) {
      loaded.add(file);
      const probe = new Image();
      probe.onerror = () => { missing.hidden = false; };
      probe.src = file;
    }
    const made = make("span", undefined, words);
    made.className = "sprite";
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", words);
    const [width, height] = sheets.shown;
    const column = place % sheets.across, row = Math.floor((place % each) / sheets.across);
    made.style.width = `${width}px`;
    made.style.height = `${height}px`;
    made.style.backgroundImage = `url("${file}")`;
    // A file with fewer pictures is lower, so its height is left to the browser.
    made.style.backgroundSize = `${width * sheets.across}px auto`;
    made.style.backgroundPosition = `${-width * column}px ${-height * row}px`;
    return made;
  }

  function line(i, number) {
    const row = make("tr");
    row.setAttribute("aria-rowindex", number + 2);
    const cell = (content, name) => {
      const made = make("td");
      if (name) made.className = name;
      made.append(content);
      row.append(made);
    };
    cell(picture(list.pictures, i, list.names[i]));
    const head = make("th", shortened(list.names[i], 32), list.names[i]);
    head.scope = "row";
    row.append(head);
    cell(make("span", shortened(className(list.labels[i]), 20), className(list.labels[i])), "text");
    cell(list.rows[i].toLocaleString("en"));
    cell(list.losses[i] === null ? "–" : list.losses[i].toFixed(3));
    cell(list.probability[i] === null ? "–" : list.probability[i].toFixed(3));
    const taken = className(list.predicted[i]);
    const wrong = ![list.labels[i], -1].includes(list.predicted[i]);
    cell(make("span", shortened(taken, 20), taken), wrong ? "text wrong" : "text");
    const by = list.voters.filter((_, seed) => list.votes[i][seed] === "1");
    cell(make("span", `${votes[i]} of ${list.voters.length}`, by.join(", ")));
    const variants = list.levels.map(() => null);
    let place = list.starts[i];
    for (const [column, state] of list.variants[i]) variants[column] = [place++, list.states[state]];
    variants.forEach((found, column) => {
      if (!found) return cell("");
      const [at, [state, colour]] = found;
      const bad = state !== "ok";
      const made = make("figure");
      made.append(picture(list.variant_pictures, at, `${list.levels[column]}: ${state}`));
      if (bad) {
        made.style.setProperty("--state", colour);
        made.append(make("figcaption", state));
      }
      cell(made, bad ? "bad" : "");
    });
    return row;
  }

  // Rows of one height, of which only those in view exist.
  function gap(rows) {
    const made = make("tr");
    made.setAttribute("aria-hidden", "true");
    made.style.height = `${rows * list.row_height}px`;
    return made;
  }

  function draw() {
    const first = Math.max(0, Math.floor(view.scrollTop / list.row_height) - 4);
    const end = Math.min(shown.length, first + Math.ceil(view.clientHeight / list.row_height) + 8);
    const now = `${first} ${end}`;
    if (now === drawn) return;
    drawn = now;
    const rows = shown.slice(first, end).map((i, place) => line(i, first + place));
    body.replaceChildren(gap(first), ...rows, gap(shown.length - end));
  }

  function update() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = [...Array(total).keys()].filter((i) => words.every((word) => texts[i].includes(word)));
    const key = keys[sorted.key], sign = sorted.up ? 1 : -1;
    const values = shown.map(key);
    const order = typeof values[0] === "string"
      ? (a, b) => compare(values[a], values[b])
      : (a, b) => (values[a] ?? -1) - (values[b] ?? -1);
    shown = [...shown.keys()].sort((a, b) => sign * order(a, b) || shown[a] - shown[b]).map((place) => shown[place]);
    count.textContent = `${shown.length.toLocaleString("en")} of ${total.toLocaleString("en")} images`;
    view.querySelector("table").setAttribute("aria-rowcount", shown.length + 1);
    for (const button of view.querySelectorAll("thead button")) {
      const own = button.dataset.key === sorted.key;
      button.parentElement.setAttribute("aria-sort", own ? (sorted.up ? "ascending" : "descending") : "none");
    }
    view.scrollTop = 0;
    drawn = "";
    draw();
  }

  for (const button of view.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const key = button.dataset.key;
      sorted = {key, up: key === sorted.key ? !sorted.up : typeof keys[key](0) === "string"};
      update();
    });
  }
  find.addEventListener("input", update);
  view.addEventListener("scroll", () => requestAnimationFrame(draw), {passive: true});
  new ResizeObserver(draw).observe(view);
  box.hidden = false;
  update();
})();
