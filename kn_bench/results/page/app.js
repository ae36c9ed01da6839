"use strict";
// The board's page. All text reaches the document through textContent: nothing in a log is markup.
(() => {
  // ---------------------------------------------------------------- elements
  const h = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  };
  const svg = (tag, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const byId = (id) => document.getElementById(id);
  const say = (text) => { byId("status").textContent = text; };

  // ---------------------------------------------------------------- numbers
  // As Python rounds: halves to the even digit, and no minus before a zero.
  const fixed = (x, digits) => {
    const half = Math.abs(x * 2 ** (digits + 1)) % 2 === 1, up = x.toFixed(digits);
    const shown = half && "13579".includes(up.at(-1)) ? (x * (1 - 1e-9)).toFixed(digits) : up;
    return Number(shown) ? shown : shown.replace("-", "");
  };
  const percent = (x) => (x === null ? "–" : fixed(100 * x, 0).replace("-", "−"));
  const signed = (x) => (x > 0 ? "+" : x < 0 && percent(x) === "0" ? "−" : "") + percent(x);
  // JSON has no infinity: a number beyond every result stands for it.
  const infinite = (x) => Math.abs(x) >= 1e29;
  const real = (x, digits) => (x === null || x === undefined ? "–" : infinite(x) ? (x < 0 ? "−∞" : "∞") : fixed(x, digits).replace("-", "−"));
  const nats = (x) => real(x, 2);
  const pText = (p) => (p === null ? "–" : p < 0.001 ? "< 0.001" : fixed(p, 3));
  const seconds = (x) => (x === null ? "–" : x < 0.01 ? fixed(x, 3) : x < 100 ? String(Number(x.toPrecision(2))) : fixed(x, 0));
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const random = (seed) => () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  // Sums and counts of each cluster; null is no score.
  const clustered = (values, clusters) => {
    const places = new Map();
    for (const cluster of clusters) if (!places.has(cluster)) places.set(cluster, places.size);
    const sums = new Float64Array(places.size), counts = new Float64Array(places.size);
    values.forEach((value, i) => {
      if (value === null) return;
      sums[places.get(clusters[i])] += value; counts[places.get(clusters[i])] += 1;
    });
    return { sums, counts };
  };
  // Which of n clusters each resample draws, as many as in the tables of the run.
  const drawn = new Map();
  const resampled = (n) => {
    if (!drawn.has(n)) {
      if (drawn.size > 3) drawn.clear();
      const draw = random(n), times = Math.min(4000, Math.max(500, Math.floor(4e6 / n)));
      const picks = new Uint32Array(times * n);
      for (let i = 0; i < picks.length; i++) picks[i] = draw() * n;
      drawn.set(n, picks);
    }
    return drawn.get(n);
  };
  const quantile = (numbers, share) => {
    const values = Float64Array.from(numbers.filter((x) => !Number.isNaN(x))).sort();
    const at = share * (values.length - 1), below = Math.floor(at), above = Math.ceil(at);
    return values[below] + (at - below) * (values[above] - values[below]);
  };
  // The intervals of kn_bench/measure/statistics.py: of the mean of one column of scores, or of
  // what is made of the means of several. Clusters are resampled, few ones have a smaller tail, and
  // the mean of a column whose clusters agree is drawn from Clopper and Pearson's distribution.
  const interval = (columns, clusters, [least, most] = [0, 1], combine = ([middle]) => middle) => {
    const parts = columns.map((values) => {
      const part = clustered(values, clusters), means = [...part.sums].map((sum, i) => sum / part.counts[i]).filter((x) => !Number.isNaN(x));
      const [low, high] = means.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
      return { ...part, n: means.length, agree: high - low < 1e-12, middle: mean(values.filter((x) => x !== null)) };
    });
    if (!parts.length || parts.some((part) => !part.n)) return [null, null, null, 0];
    const differing = parts.filter((part) => !part.agree).map((part) => part.n), alone = !differing.length;
    const tail = alone ? 0.025 : data.tails[Math.min(...differing, data.tails.length) - 1];
    const n = parts[0].sums.length, picks = alone ? [] : resampled(n), times = alone ? 1 : picks.length / n;
    const lows = [], highs = [], low = [], high = [];
    for (let time = 0; time < times; time++) {
      const share = alone ? 1 - tail : (time + 0.5) / times;
      parts.forEach((part, c) => {
        if (part.agree) {
          const q = 1 - (1 - share) ** (1 / part.n);
          low[c] = part.middle - q * (part.middle - least); high[c] = part.middle + q * (most - part.middle);
          return;
        }
        const { sums, counts } = part;
        let sum = 0, count = 0;
        for (let i = time * n; i < (time + 1) * n; i++) { sum += sums[picks[i]]; count += counts[picks[i]]; }
        low[c] = high[c] = sum / count;
      });
      lows.push(combine(low)); highs.push(combine(high));
    }
    const counted = clusters.filter((_, i) => columns.some((values) => values[i] !== null)).length;
    return [combine(parts.map((part) => part.middle)), quantile(lows, tail), quantile(highs, 1 - tail), counted];
  };
  const harmonic = (means) => means.length / means.reduce((sum, x) => sum + 1 / x, 0);
  // All flips of the signs up to 14 clusters that differ, else random ones, 32 signs a number.
  const signFlip = (values, clusters) => {
    const sums = [...clustered(values, clusters).sums].filter((sum) => Math.abs(sum) > 1e-12), n = sums.length;
    if (!n) return 1;
    const add = (all, of = (x) => x) => all.reduce((a, x) => a + of(x), 0);
    const whole = add(sums), observed = Math.abs(whole) - 1e-9 * add(sums, Math.abs);
    const exact = n <= 14, times = exact ? 1 << n : Math.min(20000, Math.max(4000, Math.floor(2e7 / n))), draw = random(n);
    let extreme = exact ? 0 : 1;
    for (let time = 0; time < times; time++) {
      let total = 0, signs = time;
      for (let i = 0; i < n; i++) {
        if (!exact && i % 32 === 0) signs = (draw() * 4294967296) | 0;
        total += ((signs >>> i % 32) & 1) * sums[i];
      }
      if (Math.abs(2 * total - whole) >= observed) extreme += 1;
    }
    return extreme / (exact ? times : times + 1);
  };
  const holm = (ps) => {
    const order = ps.map((p, i) => [p, i]).sort((a, b) => a[0] - b[0]), out = [];
    let most = 0;
    order.forEach(([p, i], rank) => { most = Math.max(most, Math.min(1, p * (ps.length - rank))); out[i] = most; });
    return out;
  };

  // ---------------------------------------------------------------- the data
  let data, text, answersOf;
  const titles = { fact: "Facts", pair: "Syntax" };
  const words = {
    reliability: "the edited prompt gives the new answer", generality: "other prompts of the fact give it",
    locality: "neighbours keep their answer", symmetry: "the inverse question follows",
    synonym: "reworded prompts and answers follow", overturn: "the old answer no longer stands",
    portability: "what follows from the edit follows; in no score",
  };
  const statusWord = { holds: "holds", missed: "missed", not_applicable: "not applicable", excluded: "excluded", error: "error" };
  const statusSign = { holds: "✓", missed: "✗", not_applicable: "–", excluded: "–", error: "!" };
  const opened = async () => {
    const box = byId("data").textContent.trim();
    let bytes;
    if (box) {
      const binary = atob(box);
      bytes = new Uint8Array(binary.length);
      for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    } else {
      bytes = new Uint8Array(await (await fetch("data.gz")).arrayBuffer());
    }
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    byId("data").textContent = "";
    return JSON.parse(await new Response(stream).text());
  };
  const name = (line) => line.method + (line.variant ? ` (${line.variant})` : "");
  const full = (line) => `${name(line)} on ${line.model}` + protocolOf(line, ", ");
  const protocolOf = (line, before = "") =>
    line.protocol === "single" ? "" : `${before}${line.protocol}${line.protocol.startsWith("sequence") ? ` ${line.asked}` : ""}`;

  const indexed = () => {
    const v = data.verdicts;
    data.ofLine = data.lines.map(() => []);
    data.ofCase = new Map();
    for (let i = 0; i < v.line.length; i++) {
      if (v.line[i] < 0) continue;
      data.ofLine[v.line[i]].push(i);
      const key = (v.line[i] * data.cases.id.length + v.case[i]) * 4096 + v.sequence[i];
      const row = data.ofCase.get(key);
      if (row) row.verdicts[v.criterion[i]] = i;
      else {
        const fresh = { line: v.line[i], case: v.case[i], sequence: v.sequence[i], verdicts: [] };
        fresh.verdicts[v.criterion[i]] = i;
        data.ofCase.set(key, fresh);
      }
    }
    data.rows = [...data.ofCase.values()];
  };
  const embeddedAnswers = () => {
    const { probes, after } = data.answers, byCase = new Map();
    for (let i = 0; i < after.line.length; i++) {
      const of = probes.case[after.probe[i]];
      if (!byCase.has(of)) byCase.set(of, []);
      byCase.get(of).push(i);
    }
    return async (line, which, sequence) => ({
      probes, after, text,
      rows: (byCase.get(which) || []).filter((i) => after.line[i] === line && after.sequence[i] === sequence),
    });
  };
  const servedAnswers = () => async (line, which, sequence) => {
    const query = new URLSearchParams({ case: text[data.cases.id[which]] });
    const answer = await fetch(`answers.json?${query}`);
    if (!answer.ok) throw new Error(await answer.text());
    const found = await answer.json();
    const rows = found.after.line.map((_, i) => i)
      .filter((i) => found.after.line[i] === line && found.after.sequence[i] === sequence);
    return { probes: found.probes, after: found.after, text: found.texts, rows };
  };

  // ---------------------------------------------------------------- state, in the address
  const state = { view: "board", task: "", model: "", method: "", relation: "", protocol: "", known: "", find: "", sort: "", a: "", b: "", at: "" };
  const initial = { ...state };
  const readState = () => {
    Object.assign(state, initial, Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
    if (!views[state.view]) state.view = "board";
  };
  const go = (change) => {
    const next = { ...state, ...change }, query = new URLSearchParams();
    for (const [key, value] of Object.entries(next)) if (value && (key !== "view" || value !== "board")) query.set(key, value);
    const hash = `#${query}`;
    if (hash === (location.hash || "#")) draw(); else location.hash = hash;
  };

  // ---------------------------------------------------------------- filters
  const unique = (values) => [...new Set(values)];
  const filters = () => {
    const choose = (key, label, options) => {
      const select = h("select", { id: `filter-${key}`, onchange: (event) => go({ [key]: event.target.value, at: "" }) },
        options.map(([value, shown]) => h("option", { value, selected: state[key] === value }, shown)));
      select.value = options.some(([value]) => value === state[key]) ? state[key] : "";
      return options.length > 2 || key === "known" ? h("label", {}, label, select) : null;
    };
    const all = (values, of = (x) => x) => [["", "all"], ...unique(values).filter(Boolean).sort().map((x) => [x, of(x)])];
    const lines = data.lines;
    const relations = data.cases.relation.filter((_, i) => !state.task || text[data.cases.task[i]] === state.task).map((i) => text[i]);
    const find = h("input", {
      id: "filter-find", type: "search", value: state.find, placeholder: "method, case, answer",
      onchange: (event) => go({ find: event.target.value, at: "" }),
    });
    byId("filters").replaceChildren(...[
      choose("task", "Task", all(lines.map((l) => l.task), (t) => titles[t])),
      choose("model", "Model", all(lines.map((l) => l.model))),
      choose("method", "Method", all(lines.map((l) => l.method))),
      choose("protocol", "Protocol", all(lines.map((l) => l.protocol))),
      choose("relation", "Relation or paradigm", all(relations)),
      choose("known", "Known before", [["", "all"], ["1", "known"], ["0", "not known"]]),
      h("label", {}, "Find", find),
      h("button", { type: "button", class: "reset", onclick: () => go({ ...initial, view: state.view }) }, "Clear"),
    ].filter(Boolean));
  };
  const lineShown = (line) =>
    (!state.task || line.task === state.task) && (!state.model || line.model === state.model) &&
    (!state.method || line.method === state.method) && (!state.protocol || line.protocol === state.protocol);
  const ofSome = () => state.relation || state.known;
  const verdictShown = (i) => {
    const v = data.verdicts;
    return (!state.relation || text[data.cases.relation[v.case[i]]] === state.relation) &&
      (!state.known || String(v.criterion[i] === symmetryAt() && v.inverse[i] >= 0 ? v.inverse[i] : v.known[i]) === state.known);
  };
  const carried = () => (data.sample ? `, of the ${data.sample.cases} of ${data.sample.of} cases that the page carries` : "");
  const symmetryAt = () => data.criteria.indexOf("symmetry");
  const clusterOf = (i, whole = data.lines[data.verdicts.line[i]].in_sequences) =>
    (whole ? data.verdicts.sequence[i] : data.cases.cluster[data.verdicts.case[i]]);

  // A line's figures: those of the run, or drawn again here where only some of its cases count.
  const figuresOf = (line, at) => {
    if (!ofSome()) return { figures: line.figures, s: line.s, k: line.k };
    const v = data.verdicts, rows = data.ofLine[at].filter(verdictShown);
    const scored = rows.filter((i) => v.score[i] !== null);
    const figures = data.criteria.map((_, c) => {
      const own = scored.filter((i) => v.criterion[i] === c), both = own.filter((i) => v.control[i] !== null);
      const theirs = both.length ? mean(both.map((i) => v.control[i])) : null;
      return [...interval([own.map((i) => v.score[i])], own.map((i) => clusterOf(i))), 0, 0, theirs, null, null, both.length, null];
    });
    return { figures, ...composites(scored) };
  };
  // S is of the cases that have all three of its criteria, K of those with either of its two.
  const composites = (scored) => {
    const v = data.verdicts, cases = new Map();
    for (const i of scored.filter((row) => v.criterion[row] < 5)) {
      const key = `${v.case[i]} ${v.sequence[i]}`;
      if (!cases.has(key)) cases.set(key, { cluster: clusterOf(i), scores: Array(5).fill(null) });
      cases.get(key).scores[v.criterion[i]] = v.score[i];
    }
    const rows = [...cases.values()], clusters = rows.map((row) => row.cluster);
    const whole = ({ scores }) => !scores.slice(0, 3).includes(null);
    const s = [0, 1, 2].map((c) => rows.map((row) => (whole(row) ? row.scores[c] : null)));
    const k = [3, 4].map((c) => rows.map((row) => row.scores[c]));
    return { s: interval(s, clusters, [0, 1], harmonic), k: interval(k, clusters, [0, 1], mean) };
  };

  // ---------------------------------------------------------------- the board
  const cell = (figure, label) => {
    const [middle, low, high, n, out, lacking, control, , , , p] = figure;
    if (middle === null) return h("td", { class: "none", "data-value": "-1" }, lacking ? "n/a" : "–");
    const chance = p !== null && p !== undefined && p >= 0.05;
    const bar = h("div", { class: "bar", "aria-hidden": "true" }, h("i"), low === null ? null : h("u"), control === null || control === undefined ? null : h("s"));
    bar.style.setProperty("--mean", 100 * middle);
    if (low !== null) { bar.style.setProperty("--low", 100 * low); bar.style.setProperty("--high", 100 * high); }
    if (control !== null && control !== undefined) bar.style.setProperty("--control", 100 * control);
    const title = `${label}: ${percent(middle)} %` + (low === null ? "" : `, 95 % interval ${percent(low)} to ${percent(high)}`) +
      (n ? `, n = ${n}` : "") + (out ? `, ${out} left out` : "") +
      (control === null || control === undefined ? "" : `; edit of equal size ${percent(control)} %${p === null || p === undefined ? "" : `, p = ${pText(p)}`}`);
    return h("td", { class: `figure${chance ? " chance" : ""}`, title, "data-value": middle },
      h("div", { class: "value" }, h("b", {}, percent(middle) + (chance ? "°" : "")),
        low === null ? null : h("span", {}, `${percent(low)}–${percent(high)}`), n ? h("span", { class: "n" }, `n ${n}`) : null,
        chance ? h("span", { class: "sr" }, "not significantly better than an edit of equal size") : null), bar);
  };
  const headed = (columns, key, drawn) => h("thead", {}, h("tr", {}, columns.map(([label, about], i) => {
    const [by, way] = state[key].split(":");
    const now = by === String(i) ? (way === "up" ? "ascending" : "descending") : "none";
    return h("th", { scope: "col", "aria-sort": now, title: about },
      h("button", { type: "button", onclick: () => go({ [key]: now === "descending" ? `${i}:up` : now === "ascending" ? "" : `${i}:down` }) }, label));
  })));
  const sorted = (rows, key) => {
    const [by, way] = state[key].split(":");
    if (by === "") return rows;
    const sign = way === "up" ? 1 : -1;
    return [...rows].sort((a, b) => {
      const [x, y] = [a.keys[by], b.keys[by]];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
    });
  };
  const none = (what) => h("p", {}, data.lines.length ? `No ${what} fits the filters.` : "Nothing has been measured.");
  const board = () => {
    const shown = data.lines.map((line, at) => ({ line, at })).filter(({ line }) => lineShown(line))
      .filter(({ line }) => !state.find || `${name(line)} ${line.model}`.toLowerCase().includes(state.find.toLowerCase()));
    const groups = new Map();
    for (const row of shown) {
      const title = `${titles[row.line.task]}${protocolOf(row.line, ", ")}`;
      if (!groups.has(title)) groups.set(title, []);
      const found = figuresOf(row.line, row.at);
      groups.get(title).push({ ...row, found, keys: [name(row.line), row.line.model, found.s[0], found.k[0], ...found.figures.map((f) => f[0]), row.line.seconds] });
    }
    say(`${shown.length} of ${data.lines.length} rows` + (ofSome() ? `; figures drawn again from the cases that are shown${carried()}; the details of a row and the further tables are of all cases` : ""));
    const columns = [["method", "Sort by name"], ["model", ""], ["S", "harmonic mean of reliability, generality, locality"],
      ["K", "mean of symmetry and synonym: what an edit of knowledge would have to reach"],
      ...data.criteria.map((c) => [c, words[c]]), ["s/edit", "seconds that an edit took"]];
    return [
      h("p", { class: "legend" }, "Percent of cases. ", h("span", { class: "key" }), "mean ", h("span", { class: "key line" }),
        "95 % interval (bootstrap by cluster) ", h("span", { class: "key tick" }), " an edit of equal size on the same cases. ",
        data.controlled ? "° and grey: not significantly better than that (paired, one-sided, Holm). " : "Nothing was compared with such an edit. ", "S: harmonic mean of reliability, generality, locality; ",
        "K: mean of symmetry and synonym. Ranked by how many of the five in S and K beat chance, then S, then K; equal ranks are ties."),
      ...[...groups].map(([title, rows]) => h("section", {}, h("h2", {}, title), h("p", { class: "legend counts" }, countsOf(rows)), h("div", { class: "sheet" },
        h("table", { class: "board" }, h("caption", { class: "sr" }, title), headed(columns, "sort"), h("tbody", {}, sorted(rows, "sort").map(boardRow)))))),
      shown.length ? null : none("row"),
      ...furtherTables(new Set(shown.map(({ at }) => at))),
    ];
  };
  // The fewest and the most cases behind a figure of each criterion.
  const countsOf = (rows) => "Cases behind a figure: " + data.criteria.map((criterion, c) => {
    const n = rows.map(({ found }) => found.figures[c][3]).filter(Boolean), [least, most] = [Math.min(...n), Math.max(...n)];
    return n.length ? `${criterion} ${least === most ? least : `${least} to ${most}`}` : `${criterion} none`;
  }).join(", ") + ".";
  // What is in no score: portability, ripple effects, free generation; the rows of the lines shown,
  // and where nothing is filtered those that have no line.
  const furtherTables = (shown) => data.further.map((table) => {
    const whole = !["task", "model", "method", "protocol", "find"].some((filter) => state[filter]);
    const rows = table.rows.filter((_, i) => shown.has(table.lines[i]) || (whole && table.lines[i] < 0));
    return rows.length ? h("section", {}, h("h2", {}, table.title), h("p", { class: "legend" }, table.note), sheet(table.title, table.headers, rows)) : null;
  });
  const sheet = (title, headers, rows) => h("div", { class: "sheet" }, h("table", {}, h("caption", { class: "sr" }, title),
    h("thead", {}, h("tr", {}, headers.map((x) => h("th", { scope: "col" }, x)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((x) => h("td", { class: typeof x === "number" ? "number" : null }, String(x))))))));
  const boardRow = ({ line, at, found }) => {
    const detail = h("tr", { class: "detail", hidden: true }, h("td", { colspan: 5 + data.criteria.length }));
    const toggle = h("button", {
      type: "button", class: "open", "aria-expanded": "false",
      onclick: () => {
        detail.hidden = !detail.hidden;
        toggle.setAttribute("aria-expanded", String(!detail.hidden));
        if (!detail.hidden) detail.firstChild.replaceChildren(...details(line, at));
      },
    }, name(line));
    return [h("tr", {}, h("th", { scope: "row" }, h("span", { class: "rank", title: `${line.beating} of 5 criteria beat chance` }, ofSome() || state.sort ? "" : `${line.rank}`), toggle),
      h("td", {}, line.model), cell([...found.s, 0, 0, null, null, null, 0, null], "S"), cell([...found.k, 0, 0, null, null, null, 0, null], "K"),
      data.criteria.map((criterion, c) => cell(found.figures[c], criterion)),
      h("td", { class: "number" }, seconds(line.seconds))), detail];
  };
  const span = ([middle, low, high, n]) => (middle === null ? "–" : `${percent(middle)}${low === null ? "" : ` [${percent(low)}, ${percent(high)}]`}  n = ${n}`);
  const list = (title, pairs) => {
    const filled = pairs.filter(([, value]) => value && value[0] !== null);
    return filled.length ? h("div", {}, h("h3", {}, title), h("dl", {}, filled.map(([key, value]) => [h("dt", {}, key), h("dd", {}, span(value))]))) : null;
  };
  const details = (line, at) => [
    h("div", { class: "grid" },
      list("By what was known before", data.strata.map((label, i) => [label, line.strata[i]])),
      list("Outcomes of symmetry", data.parts.symmetry.map((label, i) => [label.replace(/_/g, " "), line.symmetry[i]])),
      list("Overturned answers, by reading", data.parts.overturn.map((label, i) => [label.replace(/_/g, " "), line.overturn[i]])),
      list("Locality by neighbour", Object.entries(line.neighbours).map(([kind, value]) => [kind.replace(/_/g, " "), value])),
      ...Object.entries(line.readings).map(([c, values]) => list(`Readings of ${c}`, data.parts.readings.map((r, i) => [r, values[i]]))),
      h("div", {}, h("h3", {}, "Size of the change"), h("dl", {}, h("dt", {}, "mean KL of neighbours"), h("dd", {}, line.kl[0] === null ? "–" : `${real(line.kl[0], 3)} nats`),
        h("dt", {}, "shift within the pair"), h("dd", {}, span(line.shift))))),
    h("p", {}, h("button", { type: "button", class: "back", onclick: () => go({ view: "cases", task: line.task, model: line.model, method: line.method, at: "" }) }, "Show its cases"), " ",
      h("button", { type: "button", class: "back", onclick: () => go({ view: "compare", a: String(at) }) }, "Compare it with another")),
  ];

  // ---------------------------------------------------------------- a method against a method
  const compare = () => {
    if (!data.lines.length) { say(""); return [none("row")]; }
    const a = data.lines[state.a] ? Number(state.a) : Math.max(0, data.lines.findIndex(lineShown));
    const fits = (at) => at !== a && data.lines[at].task === data.lines[a].task && data.lines[at].model === data.lines[a].model;
    let b = data.lines[state.b] && data.lines[state.b].task === data.lines[a].task ? Number(state.b) : -1;
    if (b < 0) b = data.lines.findIndex((_, at) => fits(at));
    if (b < 0) b = a;
    const pick = (key, value, allowed) => h("select", { id: `pick-${key}`, onchange: (event) => go({ [key]: event.target.value }) },
      data.lines.map((line, at) => (allowed(line, at) ? h("option", { value: at, selected: at === value }, `${titles[line.task]}: ${full(line)}`) : null)));
    const v = data.verdicts, other = new Map();
    // two runs that asked otherwise of a case have it under two numbers, and one id
    const key = (i) => `${data.cases.id[v.case[i]]} ${v.criterion[i]} ${v.sequence[i]}`;
    for (const i of data.ofLine[b]) if (v.score[i] !== null) other.set(key(i), i);
    const common = data.ofLine[a].filter((i) => v.score[i] !== null && other.has(key(i)));
    const whole = data.lines[a].in_sequences && data.lines[b].in_sequences && unique(common.map((i) => v.sequence[i])).length > 1;
    const pairs = common.filter(verdictShown).map((i) => [i, other.get(key(i))]);
    const rows = data.asked.map((criterion, c) => {
      const both = pairs.filter(([i]) => v.criterion[i] === c), change = both.map(([i, j]) => v.score[j] - v.score[i]);
      const clusters = both.map(([i]) => clusterOf(i, whole));
      return { criterion, scored: c < data.criteria.length, both, change, n: unique(clusters).length, difference: interval([change], clusters, [-1, 1]), p: signFlip(change, clusters) };
    }).filter((row) => row.both.length);
    // what is in no score is adjusted apart
    const families = [true, false].map((scored) => rows.filter((row) => row.scored === scored));
    const adjusted = families.flatMap((family) => holm(family.map((row) => row.p)));
    const changed = pairs.filter(([i, j]) => v.score[i] !== v.score[j]);
    say(`${pairs.length} verdicts that both have${carried()}; ${changed.length} differ`);
    return [
      h("div", { class: "pick" }, h("label", {}, "First", pick("a", a, () => true)), h("label", {}, "Second", pick("b", b, (line) => line.task === data.lines[a].task))),
      h("div", { class: "sheet" }, h("table", {}, h("caption", {}, `${full(data.lines[b])} minus ${full(data.lines[a])}, on the same cases`),
        h("thead", {}, h("tr", {}, ["criterion", "first", "second", "difference, 95 % interval", "p", "p (Holm)", "better", "worse", "equal"].map((label) => h("th", { scope: "col" }, label)))),
        h("tbody", {}, rows.map((row, at) => h("tr", {}, h("th", { scope: "row", title: words[row.criterion] }, row.criterion),
          h("td", { class: "number" }, percent(mean(row.both.map(([i]) => v.score[i])))), h("td", { class: "number" }, percent(mean(row.both.map(([, j]) => v.score[j])))),
          h("td", { class: `number ${adjusted[at] < 0.05 ? (row.difference[0] > 0 ? "up" : "down") : ""}` }, `${signed(row.difference[0])} [${signed(row.difference[1])}, ${signed(row.difference[2])}]  n = ${row.both.length}`),
          h("td", { class: "number" }, pText(row.p)), h("td", { class: "number" }, pText(adjusted[at])),
          h("td", { class: "number" }, row.change.filter((x) => x > 0).length), h("td", { class: "number" }, row.change.filter((x) => x < 0).length),
          h("td", { class: "number" }, row.change.filter((x) => x === 0).length)))))),
      ...unlike(data.lines[a], data.lines[b]), ...families.flatMap((family) => (whole ? tooFew(family, data.lines[a].protocol) : [])),
      h("h2", {}, "Cases that differ"),
      changed.length ? h("div", { class: "sheet" }, h("table", {}, h("thead", {}, h("tr", {}, ["case", "criterion", "first", "second"].map((label) => h("th", { scope: "col" }, label)))),
        h("tbody", {}, changed.slice(0, 500).map(([i, j]) => h("tr", {}, h("th", { scope: "row" }, text[data.cases.id[v.case[i]]]), h("td", {}, data.asked[v.criterion[i]]),
          ...[i, j].map((k) => h("td", {}, h("button", { type: "button", class: "open", onclick: () => openCase(v.line[k], v.case[k], v.sequence[k]) }, percent(v.score[k])), " ", text[v.explanation[k]]))))))) : h("p", {}, "None."),
      changed.length > 500 ? h("p", {}, `${changed.length - 500} more: filter by relation to see them.`) : null,
    ];
  };

  // In what the runs of two lines differ beside the methods: the difference may be due to it.
  const unlike = (first, second) => {
    const model = first.model === second.model ? first.model : "";
    const aspects = data.unlike[`${Math.min(first.run, second.run)} ${Math.max(first.run, second.run)} ${model}`];
    return aspects ? [h("p", { class: "note" }, `The first and the second differ in ${aspects}${model ? ` for ${model}` : ""}.`)] : [];
  };
  // No p of n sequences is below 2 / 2^n, and Holm multiplies the smallest by the number of figures.
  // Batches of one step share no case.
  const tooFew = (family, protocol) => {
    const [, kind, edits, step = "1"] = protocol.match(/(batch|sequence):(\d+)(?:\/(\d+))?/);
    const batch = kind === "batch" || edits === step ? Number(edits) : 0;
    const needed = Math.floor(Math.log2((2 * family.length) / 0.05)) + 1;
    return unique(family.map((row) => row.n)).filter((n) => n < needed).map((n) => h("p", { class: "note" },
      `With ${n} sequence${n === 1 ? "" : "s"} no difference can be significant at 5 % among ${family.length} figure${family.length === 1 ? "" : "s"}; measure --sequences ${needed} or more${batch ? ` (${(needed * batch).toLocaleString("en")} cases: batches share none)` : ""}.`));
  };

  // ---------------------------------------------------------------- cases
  const openCase = (line, which, sequence) => go({ view: "cases", at: `${line}.${which}.${sequence}` });
  const cases = () => {
    if (state.at) return oneCase(...state.at.split(".").map(Number));
    const v = data.verdicts, wanted = state.find.toLowerCase();
    const rows = data.rows.filter((row) => lineShown(data.lines[row.line]) && row.verdicts.some((i) => i !== undefined && verdictShown(i)))
      .filter((row) => !wanted || ["id", "subject", "target_true", "target_new"].some((c) => text[data.cases[c][row.case]].toLowerCase().includes(wanted)) || name(data.lines[row.line]).toLowerCase().includes(wanted) ||
        row.verdicts.some((i) => i !== undefined && text[v.explanation[i]].toLowerCase().includes(wanted)));
    say(`${rows.length} edited cases` + (data.sample ? `; the page carries ${data.sample.cases} of ${data.sample.of} cases` : ""));
    const height = 34, space = h("div", { class: "space" }), drawn = new Map();
    space.style.height = `${rows.length * height}px`;
    const head = h("div", { class: "row head", role: "row", "aria-rowindex": "1" }, ["case", "method"].map((x) => h("span", { role: "columnheader" }, x)),
      h("span", { role: "columnheader", class: "model" }, "model"), data.criteria.map((c) => h("span", { role: "columnheader", title: c }, c.slice(0, 6) + "…")));
    const scroller = h("div", { class: "scroller", role: "table", "aria-label": "Edited cases", "aria-rowcount": String(rows.length + 1) }, head, space);
    const make = (at) => {
      const row = rows[at], line = data.lines[row.line];
      const element = h("button", { type: "button", class: "row", role: "row", "aria-rowindex": String(at + 2), "data-at": String(at), onclick: () => openCase(row.line, row.case, row.sequence) },
        h("span", { role: "cell" }, text[data.cases.id[row.case]]), h("span", { role: "cell" }, name(line) + protocolOf(line, ", ")), h("span", { role: "cell", class: "model" }, line.model),
        data.criteria.map((criterion, c) => {
          const i = row.verdicts[c];
          if (i === undefined) return h("span", { role: "cell", class: "not_applicable" }, "");
          const status = data.statuses[v.status[i]];
          return h("span", { role: "cell", class: status, title: `${criterion} ${statusWord[status]}: ${text[v.explanation[i]]}` },
            `${statusSign[status]} `, h("span", { class: "word" }, v.score[i] === null ? "" : percent(v.score[i])), h("span", { class: "sr" }, `${criterion} ${statusWord[status]}`));
        }));
      element.style.top = `${at * height}px`;
      return element;
    };
    const fill = () => {
      const first = Math.max(0, Math.floor(scroller.scrollTop / height) - 6), last = Math.min(rows.length, first + Math.ceil((scroller.clientHeight || 640) / height) + 14);
      for (const [at, element] of drawn) if (at < first || at >= last) { if (element !== document.activeElement) { element.remove(); drawn.delete(at); } }
      for (let at = first; at < last; at++) if (!drawn.has(at)) { const element = make(at); drawn.set(at, element); space.append(element); }
    };
    scroller.addEventListener("scroll", () => requestAnimationFrame(fill));
    scroller.addEventListener("keydown", (event) => {
      const from = Number(document.activeElement.dataset.at);
      const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15, Home: -rows.length, End: rows.length }[event.key];
      if (!step || Number.isNaN(from)) return;
      event.preventDefault();
      const to = Math.max(0, Math.min(rows.length - 1, from + step));
      const y = to * height;
      if (y < scroller.scrollTop) scroller.scrollTop = y; else if (y + 3 * height > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = y + 3 * height - scroller.clientHeight;
      fill();
      drawn.get(to).focus();
    });
    requestAnimationFrame(fill);
    return [rows.length ? h("div", { class: "sheet" }, scroller) : none("case")];
  };
  const said = (table, texts, i, holds) => [h("div", { class: `said ${holds === undefined ? "" : holds ? "holds" : "missed"}` }, texts[table.generated[i]] || texts[table.argmax[i]] || "–"),
    h("small", {}, `log p ${nats(table.expected_log_prob[i])} / ${nats(table.rejected_log_prob[i])}, rank ${table.rank[i]}`)];
  // "[Y]" at a prompt's end: the texts stand beside the answer as they are
  const exact = (left) => left.endsWith("[Y]"), before = (left) => exact(left) ? left.slice(0, -3) : `${left} `;
  const cloze = (left, right) => h("span", { class: "prompt" }, before(left), h("span", { class: "gap" }, "▁"), right && !exact(left) && /^[\w(]/.test(right) ? " " : "", right);
  const oneCase = (lineAt, which, sequence) => {
    const c = data.cases, line = data.lines[lineAt], v = data.verdicts;
    const row = data.rows.find((r) => r.line === lineAt && r.case === which && r.sequence === sequence);
    if (!row) return [h("p", {}, "There is no such case in this page.")];
    const t = (column) => text[c[column][which]], e = data.edits;
    const edit = e.line.findIndex((l, i) => l === lineAt && e.case[i] === which && e.sequence[i] === sequence);
    say(`${t("id")}: ${full(line)}`);
    // a text as the second argument would have its "$" read as a command
    const pattern = `${before(t("prompt"))}▁${t("suffix")}`.replace("{}", () => t("subject"));
    const body = h("div", {}, h("p", {}, "Reading the answers…"));
    const others = data.rows.filter((r) => c.id[r.case] === c.id[which] && data.lines[r.line].task === line.task);
    const switcher = h("select", { id: "pick-line", onchange: (event) => { const o = others[event.target.value]; openCase(o.line, o.case, o.sequence); } },
      others.map((o, i) => h("option", { value: i, selected: o === row }, full(data.lines[o.line]) + (o.sequence ? `, sequence ${o.sequence}` : ""))));
    answersOf(lineAt, which, sequence).then((found) => body.replaceChildren(...criteria(found)), (error) => body.replaceChildren(h("p", { class: "note" }, `The answers cannot be read: ${error.message}`)));
    const criteria = ({ probes, after, rows, text: texts }) => data.asked.map((criterion, at) => {
      const i = row.verdicts[at];
      if (i === undefined) return null;
      const status = data.statuses[v.status[i]], asked = criterion === "overturn" ? "reliability" : criterion;
      const own = rows.filter((r) => !after.control[r] && data.asked[probes.criterion[after.probe[r]]] === asked);
      const control = new Map(rows.filter((r) => after.control[r]).map((r) => [after.probe[r], r]));
      return h("section", {}, h("h2", {}, `${criterion} `, h("span", { class: `tag ${status}` }, statusWord[status] + (v.score[i] === null ? "" : ` ${percent(v.score[i])} %`))),
        h("p", { class: "verdict" }, text[v.explanation[i]], v.control[i] === null ? "" : ` (an edit of equal size: ${percent(v.control[i])} %)`),
        own.length && criterion !== "overturn" ? h("div", { class: "sheet" }, h("table", { class: "probes" }, h("caption", { class: "sr" }, `Probes of ${criterion}`),
          h("thead", {}, h("tr", {}, ["probe", "prompt", "expected", "rejected", "unedited model", "edited model", ...(control.size ? ["edit of equal size"] : []), "KL"].map((x) => h("th", { scope: "col" }, x)))),
          h("tbody", {}, own.map((r) => {
            const p = after.probe[r], other = control.get(p);
            return h("tr", {}, h("th", { scope: "row" }, texts[probes.id[p]], h("small", {}, texts[probes.kind[p]].replace(/_/g, " "))),
              h("td", {}, texts[probes.left[p]] || texts[probes.right[p]] ? cloze(texts[probes.left[p]], texts[probes.right[p]]) : h("span", { class: "none" }, "not recorded")),
              h("td", {}, texts[probes.expected[p]]), h("td", {}, texts[probes.rejected[p]]), h("td", {}, said(probes, texts, p)), h("td", {}, said(after, texts, r)),
              control.size ? h("td", {}, other === undefined ? "–" : said(after, texts, other)) : null, h("td", { class: "number" }, real(after.kl[r], 3)));
          })))) : null);
    }).filter(Boolean);
    return [
      h("button", { type: "button", class: "back", onclick: () => go({ at: "" }) }, "← All cases"),
      h("div", { class: "pick" }, h("label", {}, "Method and model", switcher)),
      h("div", { class: "request" }, h("h2", {}, t("id")),
        t("prompt") ? h("p", { class: "prompt" }, pattern) : null,
        t("target_new") ? h("p", {}, "Edit: ", h("b", {}, t("target_true")), " → ", h("b", {}, t("target_new"))) : null,
        h("dl", {}, h("dt", {}, "relation"), h("dd", {}, t("relation")), h("dt", {}, "cluster"), h("dd", {}, t("cluster")), h("dt", {}, "method"), h("dd", {}, full(line)),
          edit < 0 ? null : [h("dt", {}, "edit"), h("dd", {}, `${text[e.description[edit]]}; norm ${infinite(e.norm[edit]) ? "∞" : e.norm[edit]}; ${e.seconds[edit]} s`)])),
      body,
    ];
  };

  // ---------------------------------------------------------------- what was left out, curves, runs
  const leftOut = () => {
    const wanted = state.find.toLowerCase();
    const kept = (row) => (!wanted || row.join(" ").toLowerCase().includes(wanted)) && (!state.model || !data.lines.some((l) => row.includes(l.model)) || row.includes(state.model));
    say(`${data.accounts.reduce((n, account) => n + account.rows.length, 0)} reasons`);
    return [...data.notes.map((note) => h("p", { class: "note" }, note)),
      data.repeated ? h("p", { class: "note" }, `${data.repeated} verdicts stand in several runs made of the same; each counts once.`) : null,
      ...data.accounts.map((account) => h("section", {}, h("h2", {}, account.title), sheet(account.title, account.headers, account.rows.filter(kept)))),
      data.accounts.length ? null : h("p", {}, "Nothing was left out.")];
  };
  const colours = ["#3b7dd8", "#d1742c", "#3f9b57", "#b24a8f", "#7a68c7", "#a58a1f", "#c8484b", "#2f9aa5"];
  const named = (r) => `${name(r)} on ${r.model}, ${r.protocol}${r.task ? `, ${r.task}s` : ""}`;
  const curveViews = () => {
    const rows = data.curves.filter((r) => (!state.model || r.model === state.model) && (!state.method || r.method === state.method) && (!state.protocol || r.protocol === state.protocol) && (!state.task || !r.task || r.task === state.task));
    say(rows.length ? `${rows.length} checkpoints` : "");
    if (!rows.length) return [data.curves.length ? none("checkpoint") : h("p", {}, "No run here edited in sequence: there are no curves.")];
    const measures = ["retained", "known", "blimp", "perplexity", "kl", "growth"].filter((m) => rows.some((r) => typeof r[m] === "number"));
    const labels = { retained: "edits retained", blimp: "BLiMP accuracy", known: "known facts still answered", perplexity: "perplexity (log scale)", kl: "mean KL from the unedited model (nats)", growth: "|dW| / |W| of the matrix that grew most" };
    const series = unique(rows.map(named));
    return [h("p", { class: "legend" }, series.map((s, i) => { const key = h("span", { class: "key" }); key.style.background = colours[i % colours.length]; return [key, s, " "]; })),
      h("div", { class: "charts" }, measures.map((m) => chart(m, labels[m], rows, series)))];
  };
  const chart = (m, label, rows, series) => {
    const log = m === "perplexity", share = !["perplexity", "kl", "growth"].includes(m), edits = (r) => r.edits ?? r.step;
    const known = rows.filter((r) => typeof r[m] === "number"), of = (r) => r[m];
    // As in the figures: the mean over sequences, and no point where one of them is infinite.
    const finite = (values) => values.length > 0 && !values.some(infinite);
    const curves = series.map((s) => {
      const own = known.filter((r) => named(r) === s), by = new Map();
      for (const r of own.filter((row) => edits(row) > 0)) { if (!by.has(edits(r))) by.set(edits(r), []); by.get(edits(r)).push(of(r)); }
      const all = [...by].sort((a, b) => a[0] - b[0]), points = all.filter(([, v]) => finite(v));
      return { s, points, start: own.filter((r) => r.step === 0).map(of), beyond: all.length - points.length };
    });
    const scale = (value) => (log ? Math.log10(value) : value), beyond = curves.reduce((n, curve) => n + curve.beyond, 0);
    const values = curves.flatMap(({ points, start }) => [...points.flatMap(([, v]) => v), ...(finite(start) ? start : [])]).map(scale);
    const most = Math.max(2, ...rows.map(edits)), low = log && values.length ? Math.min(...values) : 0, high = Math.max(low + 1e-6, share || !values.length ? 1 : Math.max(...values));
    // edits on a log scale, as in the figures: what the unedited model does is the dashed line
    const x = (s) => 44 + (330 * Math.log(s)) / Math.log(most), y = (value) => 178 - (160 * (scale(value) - low)) / (high - low);
    const picture = svg("svg", { viewBox: "0 0 390 210", role: "img", "aria-label": label }, svg("path", { class: "axis", d: "M44 18V178H374", fill: "none" }));
    for (const tick of [low, (low + high) / 2, high]) { const at = log ? 10 ** tick : tick, t = svg("text", { x: 40, y: y(at) + 4, "text-anchor": "end" }); t.textContent = log ? at.toPrecision(2) : share ? percent(at) : fixed(at, 2); picture.append(t); }
    for (let at = 1; at <= most; at *= 10) { const t = svg("text", { x: x(at), y: 194, "text-anchor": "middle" }); t.textContent = String(at); picture.append(t); }
    curves.forEach(({ s, points, start }, i) => {
      if (finite(start)) picture.append(svg("path", { class: "axis", "stroke-dasharray": "3 3", d: `M44 ${y(mean(start))}H374`, fill: "none" }));
      const colour = colours[i % colours.length];
      if (!points.length) return;
      const band = [...points.map(([at, v]) => `${x(at)} ${y(Math.max(...v))}`), ...points.map(([at, v]) => `${x(at)} ${y(Math.min(...v))}`).reverse()];
      picture.append(svg("path", { d: `M${band.join("L")}Z`, fill: colour, opacity: 0.15 }), svg("path", { d: `M${points.map(([at, v]) => `${x(at)} ${y(mean(v))}`).join("L")}`, fill: "none", stroke: colour, "stroke-width": 2 }));
      for (const [at, v] of points) { const dot = svg("circle", { cx: x(at), cy: y(mean(v)), r: 2.5, fill: colour }), title = svg("title", {}); title.textContent = `${s}: ${label} ${log ? mean(v).toPrecision(3) : fixed(mean(v), 3)} after ${at} edits`; dot.append(title); picture.append(dot); }
    });
    return h("figure", {}, h("figcaption", {}, label, h("span", { class: "n" }, " by number of edits (log); dashed: unedited; band: least and most over sequences",
      beyond ? `; not drawn: ${beyond} point${beyond === 1 ? "" : "s"} at ∞` : "")), picture);
  };
  const manifests = () => {
    say(`${data.runs.length} run${data.runs.length === 1 ? "" : "s"}`);
    const flat = (value) => (value !== null && typeof value === "object" ? (Array.isArray(value) ? value.map(flat).join(", ") : Object.entries(value).map(([k, x]) => `${k}: ${typeof x === "number" ? Number(fixed(x, 2)) : flat(x)}`).join("; ")) : String(value));
    return data.runs.map((run) => h("section", {}, h("h2", {}, run.run), h("div", { class: "request" }, h("dl", {}, Object.entries(run).filter(([, value]) => flat(value) !== "").map(([key, value]) => [h("dt", {}, key), h("dd", {}, flat(value))])))));
  };

  // ---------------------------------------------------------------- the frame
  const views = { board: ["Board", board], compare: ["Compare", compare], cases: ["Cases", cases], left: ["Left out", leftOut], curves: ["Curves", curveViews], runs: ["Runs", manifests] };
  const tabs = () => byId("tabs").replaceChildren(...Object.entries(views).map(([key, [label]]) => h("button", {
    type: "button", role: "tab", id: `tab-${key}`, "aria-controls": "main", "aria-selected": String(state.view === key), tabindex: state.view === key ? "0" : "-1",
    onclick: () => go({ view: key, at: "" }),
    onkeydown: (event) => {
      const keys = Object.keys(views), step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) { const next = keys[(keys.indexOf(key) + step + keys.length) % keys.length]; toFocus = `tab-${next}`; go({ view: next, at: "" }); }
    },
  }, label)));
  let toFocus = "";
  const draw = () => {
    const focused = toFocus || (document.activeElement && document.activeElement.id);
    toFocus = "";
    readState();
    tabs();
    filters();
    byId("main").setAttribute("role", "tabpanel");
    byId("main").setAttribute("aria-labelledby", `tab-${state.view}`);
    byId("main").replaceChildren(...views[state.view][1]().flat(3).filter(Boolean));
    if (focused && byId(focused)) byId(focused).focus();
    document.documentElement.dataset.ready = "yes";
  };
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  const begin = async () => {
    data = await opened();
    text = data.texts;
    indexed();
    answersOf = data.served ? servedAnswers() : embeddedAnswers();
    const models = unique(data.lines.map((l) => l.model)), methods = unique(data.lines.map((l) => l.method));
    byId("about").textContent = `${data.runs.map((r) => r.run).slice(0, 4).join(", ")}${data.runs.length > 4 ? ` and ${data.runs.length - 4} more runs` : ""}: ${methods.length} methods on ${models.length} model${models.length === 1 ? "" : "s"}` +
      (data.sample ? `. The figures are of all ${data.sample.of} cases; of ${data.sample.measurements} answers the page carries those of ${data.sample.cases} cases: kn-bench view shows the rest` : "");
    addEventListener("hashchange", draw);
    draw();
  };
  begin().catch((error) => { say(`The page cannot be drawn: ${error.message}`); document.documentElement.dataset.ready = "failed"; });
})();
