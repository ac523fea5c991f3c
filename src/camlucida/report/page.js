"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const palette = bytes(page.palette);
  const list = document.getElementById("cards");
  const cards = [...list.querySelectorAll(".card")];
  const control = (id) => document.getElementById(id);
  const slider = control("threshold");
  const pixels = 256; // longer side of a drawn map; the browser stretches it to the frame
  let moved = false; // the threshold slider was touched: swept boxes instead of the rule's own

  function bytes(text) {
    const raw = atob(text);
    const out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  function words(text) {
    const view = new DataView(bytes(text).buffer);
    return Uint16Array.from({ length: view.byteLength / 2 }, (_, i) => view.getUint16(2 * i, true));
  }

  const parsed = new Map();
  function data(card) {
    if (!parsed.has(card)) parsed.set(card, JSON.parse(card.querySelector("script").textContent));
    return parsed.get(card);
  }

  // Which boxes a class has now, in source pixels.
  function boxesOf(card, one) {
    if (!moved || !one.sweep) return one.boxes.map((box) => box.slice(0, 4));
    one.swept ??= words(one.sweep);
    const { width, height } = data(card);
    const [x0, y0, x1, y1] = one.swept.subarray(4 * slider.value, 4 * slider.value + 4);
    if (x0 > x1 || y0 > y1) return [];
    return [[(x0 / 65535) * width, (y0 / 65535) * height, (x1 / 65535) * width, (y1 / 65535) * height]];
  }

  // Cell coordinates of pixel centres along one axis: bilinear, edges repeated, as the library stretches its maps.
  function taps(length, cells) {
    return Array.from({ length }, (_, i) => {
      const at = Math.min(Math.max(((i + 0.5) * cells) / length - 0.5, 0), cells - 1);
      const low = Math.min(Math.floor(at), Math.max(cells - 2, 0));
      return [low, Math.min(low + 1, cells - 1), at - low];
    });
  }

  // Linear colour: 0 and below is the coldest, the map's maximum the hottest.
  function paint(canvas, grid, width, height, longest) {
    const factor = longest / Math.max(width, height);
    canvas.width = Math.max(1, Math.round(width * factor));
    canvas.height = Math.max(1, Math.round(height * factor));
    const { rows, columns, low, high } = grid;
    const values = Float64Array.from(words(grid.values), (step) => low + ((high - low) * step) / 65535);
    const across = taps(canvas.width, columns);
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    let at = 0;
    for (const [top, bottom, down] of taps(canvas.height, rows)) {
      const line = Float64Array.from({ length: columns }, (_, c) =>
        values[top * columns + c] * (1 - down) + values[bottom * columns + c] * down);
      for (const [left, right, part] of across) {
        const value = line[left] * (1 - part) + line[right] * part;
        const index = 3 * Math.round(Math.min(Math.max(value / high, 0), 1) * 255);
        image.data[at++] = palette[index];
        image.data[at++] = palette[index + 1];
        image.data[at++] = palette[index + 2];
        image.data[at++] = 255;
      }
    }
    context.putImageData(image, 0, 0);
  }

  function frameLines(frame, card, found) {
    const { width, height, truth } = data(card);
    let svg = frame.querySelector("svg");
    if (!svg) {
      svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("aria-hidden", "true");
      frame.append(svg);
    }
    svg.replaceChildren();
    for (const [kind, group] of [["truth", truth], ["found", found]]) {
      for (const [x0, y0, x1, y1] of group) {
        for (const name of ["halo", kind]) {
          const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
          const at = { class: name, x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
          for (const [key, value] of Object.entries(at)) box.setAttribute(key, value);
          svg.append(box);
        }
      }
    }
  }

  const drawn = new Set();
  function draw(card, longest = pixels) {
    if (drawn.has(card)) return;
    drawn.add(card);
    const { width, height, truth, classes } = data(card);
    const original = card.querySelector(".original");
    if (truth.length) frameLines(original.querySelector(".frame"), card, []);
    const source = original.querySelector("img").src;
    card.querySelectorAll(".tile").forEach((tile, k) => {
      const frame = tile.querySelector(".frame");
      const picture = new Image();
      picture.src = source;
      picture.alt = "";
      frame.append(picture);
      if (classes[k].grid) {
        const canvas = document.createElement("canvas");
        paint(canvas, classes[k].grid, width, height, longest);
        frame.append(canvas);
      }
      frameLines(frame, card, boxesOf(card, classes[k]));
    });
  }

  // A thousand cards of canvases do not fit in memory: what left the screen is let go.
  function release(card) {
    if (!drawn.delete(card)) return;
    parsed.delete(card);
    for (const frame of card.querySelectorAll(".tile .frame")) {
      for (const canvas of frame.querySelectorAll("canvas")) canvas.width = canvas.height = 0;
      frame.replaceChildren();
    }
  }

  function redrawBoxes() {
    for (const card of drawn) {
      const { classes } = data(card);
      card.querySelectorAll(".tile").forEach((tile, k) =>
        frameLines(tile.querySelector(".frame"), card, boxesOf(card, classes[k])));
    }
    if (!slider) return;
    const percent = (share) => `${(100 * share).toFixed(1).replace(/\.0$/, "")} %`;
    const own = page.own === null ? "the rule’s own" : `the rule’s own, ${Number(page.own.toPrecision(3))}`;
    control("threshold-words").textContent = moved ? `${percent(page.thresholds[slider.value])} of each map’s maximum` : own;
    control("own").disabled = !moved;
  }

  function narrow() {
    const text = control("text").value.trim().toLowerCase();
    const least = control("least").value / 100;
    const status = control("status").value;
    let shown = 0;
    for (const card of cards) {
      const file = card.dataset.name.toLowerCase();
      const tiles = [...card.querySelectorAll(".tile")];
      let any = !tiles.length && !least && !status && file.includes(text);
      for (const tile of tiles) {
        const named = [file, tile.dataset.class.toLowerCase(), tile.dataset.id.toLowerCase()];
        const fits = named.some((name) => name.includes(text)) && Number(tile.dataset.probability) >= least
          && (!status || tile.dataset.status === status);
        tile.hidden = !fits;
        any ||= fits;
      }
      card.hidden = !any;
      shown += any;
    }
    const all = `${cards.length} ${cards.length === 1 ? "picture" : "pictures"}`;
    control("count").textContent = shown === cards.length ? all : `${shown} of ${all}`;
    control("none").hidden = shown > 0 || !cards.length;
    control("least-words").textContent = `${control("least").value} %`;
  }

  const first = (card) => card.querySelector(".tile")?.dataset ?? { probability: 0, logit: 0, class: "" };
  const orders = {
    order: () => 0,
    confidence: (a, b) => first(b).probability - first(a).probability || first(b).logit - first(a).logit,
    class: (a, b) => first(a).class.localeCompare(first(b).class),
    file: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
  };
  function arrange() {
    const order = orders[control("sort").value];
    list.append(...[...cards].sort((a, b) => order(a, b) || a.dataset.index - b.dataset.index));
  }

  function lay() {
    const root = document.documentElement;
    root.style.setProperty("--opacity", control("overlay").checked ? control("opacity").value / 100 : 0);
    control("opacity").disabled = !control("overlay").checked;
    control("opacity-words").textContent = control("overlay").checked ? `${control("opacity").value} %` : "off";
    root.classList.toggle("bare", !control("overlay").checked);
  }

  const sight = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) (isIntersecting ? draw : release)(target);
  }, { rootMargin: "800px 0px" });
  const watch = () => cards.forEach((card) => sight.observe(card));

  control("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["text", "least", "status"]) control(id).addEventListener("input", narrow);
  control("sort").addEventListener("input", arrange);
  for (const id of ["overlay", "opacity"]) control(id).addEventListener("input", lay);
  slider?.addEventListener("input", () => { moved = true; redrawBoxes(); });
  control("own")?.addEventListener("click", () => { moved = false; slider.value = page.start; redrawBoxes(); });
  control("all").addEventListener("click", () => {
    control("text").value = control("status").value = "";
    control("least").value = 0;
    narrow();
  });
  control("more").addEventListener("click", () => {
    const open = control("controls").classList.toggle("open");
    control("more").setAttribute("aria-expanded", open);
  });
  addEventListener("beforeprint", () => {
    sight.disconnect();
    const printed = cards.filter((card) => !card.hidden);
    for (const card of printed) draw(card, printed.length > 100 ? 96 : pixels);
  });
  addEventListener("afterprint", () => { cards.forEach(release); watch(); });

  // What a person sees may have been restored by the browser on reload; start from what the controls say.
  if (slider) slider.value = page.start;
  narrow();
  arrange();
  lay();
  redrawBoxes();
  watch();

  window.camlucida = {
    /** Boxes drawn now for a card (number from 0, in the run's order) and a class rank: [[x0, y0, x1, y1]], source pixels. */
    boxes(number, rank) {
      draw(cards[number]);
      const tile = cards[number].querySelector(`.tile[data-rank="${rank}"]`);
      return [...tile.querySelectorAll("rect.found")].map((box) => {
        const [x, y, width, height] = ["x", "y", "width", "height"].map((name) => Number(box.getAttribute(name)));
        return [x, y, x + width, y + height];
      });
    },
  };
})();
