"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector, under = document) => under.querySelector(selector);
  const all = (selector, under = document) => [...under.querySelectorAll(selector)];
  const digits = (number) => Math.round(number).toLocaleString("en-US");
  const size = (bytes) => {
    for (const [least, letters] of [[1e6, "MB"], [1e3, "kB"]]) {
      if (bytes >= least) return `${Number((bytes / least).toPrecision(3))} ${letters}`;
    }
    return `${bytes} B`;
  };

  // Settings: the plan beside SE, bytes of an element, light or dark.
  const beside = one("#beside");
  const dtype = one("#dtype");
  const theme = one("#theme");
  const dark = () => {
    const said = document.documentElement.dataset.theme;
    return said ? said === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const showTheme = () => {
    theme.setAttribute("aria-pressed", String(dark()));
    theme.textContent = dark() ? "Light" : "Dark";
  };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    showTheme();
  });
  showTheme();
  dtype.addEventListener("change", () => {
    for (const cell of all(".bytes")) cell.textContent = size(Number(cell.dataset.elements) * Number(dtype.value));
  });

  // The strip of blocks, and the details of the one that is chosen.
  const blocks = all(".block");
  const details = all(".detail");
  const choose = (number) => {
    blocks.forEach((block, i) => {
      block.setAttribute("aria-pressed", String(i === number));
      block.tabIndex = i === number ? 0 : -1;
    });
    details.forEach((detail, i) => { detail.hidden = i !== number; });
  };
  blocks.forEach((block, i) => {
    block.addEventListener("click", () => choose(i));
    block.addEventListener("keydown", (event) => {
      const last = blocks.length - 1;
      const to = { ArrowRight: Math.min(i + 1, last), ArrowLeft: Math.max(i - 1, 0), Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(to);
      blocks[to].focus();
      blocks[to].scrollIntoView({ block: "nearest", inline: "nearest" });
    });
  });
  choose(0);
  const fill = () => {
    const number = Number(beside.value);
    document.documentElement.style.setProperty("--beside", `var(--c${number % 6})`);
    for (const name of all(".beside-name")) name.textContent = `with ${data.names[number]}`;
    for (const block of blocks) block.style.setProperty("--share", block.dataset.shares.trim().split(" ")[number]);
  };
  beside.addEventListener("change", fill);
  fill();

  // The timeline: lanes drawn once for each pipeline, and a cursor that the slider moves.
  if (!data.timeline) return;
  const { end, instants, pipelines } = data.timeline;
  const STATES = ["idle", "works", "starved", "blocked", "done"];
  const svg = (name, attributes, under) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    under?.append(made);
    return made;
  };
  const element = (name, text, under) => {
    const made = document.createElement(name);
    made.textContent = text;
    under?.append(made);
    return made;
  };
  const unrolled = (runs) => {
    const values = [];
    for (let i = 0; i < runs.length; i += 2) for (let n = 0; n < runs[i + 1]; n++) values.push(runs[i]);
    return values;
  };
  for (const pipeline of pipelines) {
    for (const stage of pipeline.stages) {
      stage.held = unrolled(stage.rows);
      stage.does = unrolled(stage.states);
    }
  }
  const most = Math.max(...pipelines.flatMap((pipeline) => pipeline.all), 1);
  const area = (values) => {
    const steps = values.map((value, i) => `L${i} ${(100 - 100 * value / most).toFixed(2)}H${i + 1}`).join("");
    return `M0 100${steps}V100Z`;
  };
  const drawn = (figure) => {
    const number = Number(figure.dataset.pipeline);
    const pipeline = pipelines[number];
    figure.replaceChildren();
    figure.className = `pipeline c${number % 6}`;
    element("h3", `${pipeline.name}: ${digits(pipeline.cycles)} cycles`, figure);
    const chart = svg("svg", { class: "held-chart", viewBox: `0 0 ${instants} 100`, preserveAspectRatio: "none", role: "img",
      "aria-label": `Elements in the FIFOs over time; at most ${digits(Math.max(...pipeline.all))}` }, figure);
    svg("path", { class: "all", d: area(pipeline.all) }, chart);
    svg("path", { class: "gates", d: area(pipeline.gates) }, chart);
    const count = pipeline.stages.length;
    const lanes = svg("svg", { class: "lanes", viewBox: `0 0 ${instants} ${count}`, preserveAspectRatio: "none", role: "img",
      "aria-label": `${count} stages over time: working, waiting for rows, waiting for room` }, figure);
    lanes.style.setProperty("--lanes", count);
    pipeline.stages.forEach((stage, row) => {
      const lane = svg("g", { class: "lane" }, lanes);
      svg("title", {}, lane).textContent = `${stage.name} (${stage.kind})`;
      const paths = {};
      let x = 0;
      for (let i = 0; i < stage.states.length; i += 2) {
        const state = STATES[stage.states[i]];
        paths[state] = `${paths[state] ?? ""}M${x} ${row + 0.5}h${stage.states[i + 1]}`;
        x += stage.states[i + 1];
      }
      const gate = stage.gate !== null || stage.kind === "gate" || stage.kind === "squeeze" ? " gate" : "";
      for (const state of ["starved", "blocked", "works"]) {
        if (paths[state]) svg("path", { class: state + (state === "works" ? gate : ""), d: paths[state] }, lane);
      }
    });
    for (const [under, height] of [[chart, 100], [lanes, count]]) {
      svg("line", { class: "cursor", x1: 0, x2: 0, y1: 0, y2: height }, under);
    }
    element("figcaption", "Above: elements in all FIFOs; in colour those that wait for a gate. Below: a line a stage, the image at the top.", figure);
    const readout = element("div", "", figure);
    readout.className = "readout";
  };
  const figures = [one("#left"), one("#right")];
  const clock = one("#clock");
  const tell = () => {
    const t = Number(clock.value);
    one("#now").textContent = `cycle ${digits((t + 0.5) * end / instants)} of ${digits(end)}`;
    for (const figure of figures) {
      const pipeline = pipelines[Number(figure.dataset.pipeline)];
      for (const cursor of all(".cursor", figure)) {
        cursor.setAttribute("x1", t + 0.5);
        cursor.setAttribute("x2", t + 0.5);
      }
      const counts = [0, 0, 0, 0, 0];
      for (const stage of pipeline.stages) counts[stage.does[t]] += 1;
      const readout = one(".readout", figure);
      readout.replaceChildren();
      element("p", `${counts[1]} stages work, ${counts[2] + counts[3]} wait, ${counts[4]} are done; gates hold ` +
        `${digits(pipeline.gates[t])} of ${digits(pipeline.all[t])} elements in FIFOs.`, readout);
      const list = element("ul", "", readout);
      list.className = "fifos";
      const full = pipeline.stages.map((stage) => ({ stage, held: stage.held[t] * stage.row }))
        .filter(({ held }) => held > 0).sort((a, b) => b.held - a.held).slice(0, 6);
      for (const { stage, held } of full) {
        const line = element("li", "", list);
        line.className = stage.gate !== null ? "gate" : "";
        line.style.setProperty("--share", `${(100 * held / Math.max(...full.map((f) => f.held))).toFixed(1)}%`);
        element("span", stage.gate !== null ? `${stage.gate} (its gate)` : stage.name, line);
        element("span", `${stage.held[t]} rows, ${digits(held)}`, line);
      }
    }
  };
  const draw = () => { figures.forEach(drawn); tell(); };
  clock.addEventListener("input", tell);
  beside.addEventListener("change", () => { figures[1].dataset.pipeline = beside.value; draw(); });
  const play = one("#play");
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; play.setAttribute("aria-pressed", "false"); };
  play.addEventListener("click", () => {
    if (timer !== null) { stop(); return; }
    if (Number(clock.value) >= instants - 1) clock.value = 0;
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      if (Number(clock.value) >= instants - 1) { stop(); return; }
      clock.value = Number(clock.value) + 1;
      tell();
    }, 25);
  });
  draw();
})();
