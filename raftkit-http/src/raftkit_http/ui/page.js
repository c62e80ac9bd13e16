(() => {
"use strict";
const POLL_MS = 1000, SLOW_MS = 5000, TIMEOUT_MS = 5000, SAMPLES = 180, EVENTS = 400, TOKEN = "raftkit-token";
const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  ok: "M5 13l5 5L20 7", warn: "M12 5v9M12 19v.01", bad: "M6 6l12 12M18 6L6 18", wait: "M5 12h.01M12 12h.01M19 12h.01",
};
const STATES = {
  "healthy": ["ok", "Healthy"], "degraded": ["warn", "Degraded"], "no leader": ["warn", "No leader"],
  "no quorum": ["bad", "No quorum"], "not initialized": ["wait", "Not a cluster yet"],
};
const ROLES = {leader: "Leader", follower: "Follower", candidate: "Candidate", learner: "Learner", shutdown: "Shut down"};
const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en-US");
const count = (n) => (n === null || n === undefined ? "–" : number.format(n));

// --- small builders -------------------------------------------------------------------------------------------------

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") element.textContent = value; else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}
function draw(name, attributes = {}, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
function say(element, text) { if (element.textContent !== text) element.textContent = text; }
function age(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 120000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 7200000) return `${Math.round(ms / 60000)} min`;
  if (ms < 172800000) return `${Math.round(ms / 3600000)} h`;
  return `${Math.round(ms / 86400000)} days`;
}
function bytes(size) {
  if (!size) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (size >= 1024 && at < units.length - 1) { size /= 1024; at += 1; }
  return `${size < 10 && at ? size.toFixed(1) : Math.round(size)} ${units[at]}`;
}

// --- what is known --------------------------------------------------------------------------------------------------

const known = {colours: new Map(), cards: new Map(), lastEvent: new Map(), reached: new Map(), events: [], samples: [],
  cluster: null, heardAt: 0, paused: false, wanted: ""};

function colourOf(id) {
  if (!known.colours.has(id)) known.colours.set(id, `var(--s${known.colours.size % 7})`);
  return known.colours.get(id);
}

// --- asking ---------------------------------------------------------------------------------------------------------

async function ask() {
  const after = [...known.lastEvent].map(([id, last]) => `${id}:${last}`).join(",");
  const headers = {Accept: "application/json"};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), TIMEOUT_MS);
  try {
    const url = `v1/cluster?timeout_ms=4000${after ? `&events_after=${encodeURIComponent(after)}` : ""}`;
    const response = await fetch(url, {headers, signal: stop.signal, cache: "no-store", redirect: "error"});
    const answer = await response.json();
    return {status: response.status, answer};
  } finally { clearTimeout(timer); }
}

async function turn() {
  let pause = POLL_MS;
  if (!known.paused && !document.hidden) {
    try {
      const {status, answer} = await ask();
      if (answer.ok) heard(answer.data);
      else if (status === 401 || status === 403) { refused(answer.error); pause = SLOW_MS; }
      else { unable(answer.error); pause = 2 * POLL_MS; }
    } catch (error) { silent(); pause = 2 * POLL_MS; }
  }
  again(pause);
}

let next = 0;
function again(pause) { clearTimeout(next); next = setTimeout(turn, pause); }

// --- what became of it ----------------------------------------------------------------------------------------------

function heard(cluster) {
  const before = known.cluster;
  known.cluster = cluster;
  known.heardAt = performance.now();
  pulse("ok", "live");
  delete $("main").dataset.stale;
  cluster.nodes.forEach((node) => colourOf(node.id));
  say($("cluster-name"), cluster.cluster);
  say($("served-by"), cluster.asked);
  document.title = `${cluster.state === "healthy" ? "" : "\u26a0 "}${cluster.cluster} · raftkit`;
  const [state, words] = STATES[cluster.state] || ["warn", cluster.state];
  health(state, words, `${cluster.verdict[0].toUpperCase()}${cluster.verdict.slice(1)}.`, cluster.next_step);
  $("others").hidden = true;
  takeEvents(cluster);
  sample(cluster, before);
  figures(cluster);
  members(cluster);
  charts();
  foot(cluster);
}

function refused(error) {
  trouble("wait", "A token is needed", error.message, "enter a token with the role read");
  pulse("bad", "no access");
  if (known.cluster) $("main").dataset.stale = "";
  if (!$("token-dialog").open && known.wanted !== error.message) { known.wanted = error.message; openToken(); }
}

function silent() {
  const id = known.cluster ? known.cluster.asked : "This node";
  trouble("bad", `${id} does not answer`, `This page comes from ${id} and goes on asking it. The figures below are its last ones.`, null);
  outdated(id, "no answer");
}

function unable(error) {
  const id = known.cluster ? known.cluster.asked : "This node";
  trouble("bad", `${id} cannot answer`, `${error.message}. The figures below are its last ones.`, error.hint);
  outdated(id, "cannot answer");
}

// Nothing below is true any more by itself: it is dimmed, the node is not shown as one that answers, and the way to the
// others is named, those first that did answer.
function outdated(id, words) {
  $("main").dataset.stale = "";
  pulse("bad", known.heardAt ? `${words} for ${age(performance.now() - known.heardAt)}` : words);
  const parts = known.cards.get(id);
  if (parts) {
    parts.item.dataset.state = "down";
    parts.reach.className = "badge poor";
    say(parts.reach, words);
  }
  const links = known.cluster ? known.cluster.nodes.filter((node) => node.id !== id && pageOf(node)) : [];
  links.sort((one, other) => Number(!one.status) - Number(!other.status));
  $("others").replaceChildren(...links.map((node) => make("a", {href: pageOf(node), text: `Open ${node.id}`})));
  $("others").hidden = links.length === 0;
}

function trouble(state, title, words, next) { health(state, title, words, next); }

function health(state, title, words, next) {
  const box = $("health");
  if (box.dataset.shown !== state) {
    box.dataset.shown = box.dataset.state = state;
    const icon = draw("svg", {viewBox: "0 0 24 24"});
    icon.append(draw("path", {d: ICONS[state]}));
    box.querySelector(".health-icon").replaceChildren(icon);
  }
  say($("health-state"), title);
  say($("health-words"), words);
  $("health-next").hidden = !next;
  say($("health-next"), next || "");
}

function pulse(state, text) { $("pulse").dataset.state = state; say($("pulse-text"), text); }

function pageOf(node) {
  try {
    const url = new URL(node.node.client || node.node.peer);
    return url.protocol === "http:" || url.protocol === "https:" ? `${url.origin}/ui` : null;
  } catch (error) { return null; }
}

// --- figures --------------------------------------------------------------------------------------------------------

function sample(cluster, before) {
  const at = performance.now();
  const answering = cluster.nodes.filter((node) => node.status);
  const committed = Math.max(0, ...answering.map((node) => node.status.committed || 0));
  const last = known.samples[known.samples.length - 1];
  let rate = null;
  if (last && before && at - last.at < 4 * POLL_MS && committed >= last.committed) {
    rate = (committed - last.committed) / ((at - last.at) / 1000);
  }
  const lag = new Map(cluster.nodes.map((node) => [node.id, node.id === cluster.leader ? 0 : node.lag_entries]));
  known.samples.push({at, committed, rate, lag});
  if (known.samples.length > SAMPLES) known.samples.shift();
}

function figures(cluster) {
  const {rate, lag, committed} = known.samples[known.samples.length - 1];
  say($("f-leader"), cluster.leader || "none");
  say($("f-term"), count(cluster.term));
  say($("f-quorum"), cluster.quorum.voters ? `${cluster.quorum.working} of ${cluster.quorum.voters}` : "–");
  say($("f-commit"), count(committed));
  say($("f-rate"), rate === null ? "–" : count(Math.round(rate)));
  const worst = Math.max(-1, ...[...lag.values()].filter((value) => value !== null));
  say($("f-lag"), worst < 0 ? "–" : count(worst));
}

// --- members --------------------------------------------------------------------------------------------------------

const FACTS = [
  ["term", "Term"], ["last", "Last entry"], ["commit", "Committed"], ["applied", "Applied"], ["behind", "Behind"],
  ["contact", "Last contact"], ["snapshot", "Snapshot"], ["store", "Log size"], ["up", "Up for"],
];

function card(id) {
  const item = make("li", {class: "member"});
  item.style.setProperty("--node", colourOf(id));
  const parts = {item, name: make("h3", {text: id}), role: make("span", {class: "badge"}), voter: make("span", {class: "badge"}),
    reach: make("span", {class: "badge"}), trouble: make("p", {class: "trouble", hidden: ""}), facts: {}};
  parts.bar = draw("svg", {class: "bar", role: "img", preserveAspectRatio: "none", viewBox: "0 0 1000 22"});
  const facts = make("dl", {class: "facts"});
  for (const [key, label] of FACTS) {
    parts.facts[key] = make("dd");
    facts.append(make("div", {}, make("dt", {text: label}), parts.facts[key]));
  }
  parts.kind = make("span");
  parts.link = make("a", {rel: "noreferrer", text: "its own page"});
  item.append(make("div", {class: "member-head"}, parts.name, parts.role, parts.voter, parts.reach), parts.bar, facts, parts.trouble,
    make("p", {class: "more"}, parts.kind, parts.link));
  return parts;
}

function members(cluster) {
  const span = spanOf(cluster);
  const wanted = new Set(cluster.nodes.map((node) => node.id));
  for (const [id, parts] of known.cards) if (!wanted.has(id)) { parts.item.remove(); known.cards.delete(id); }
  for (const node of cluster.nodes) {
    if (!known.cards.has(node.id)) {
      known.cards.set(node.id, card(node.id));
      $("members").append(known.cards.get(node.id).item);
      $("event-node").append(make("option", {value: node.id, text: node.id}));
    }
    fill(known.cards.get(node.id), node, cluster, span);
  }
}

function fill(parts, node, cluster, span) {
  const status = node.status;
  const isLeader = node.id === cluster.leader;
  const stopped = status && (status.fatal || status.needs_rejoin);
  parts.item.dataset.state = status && !stopped ? "ok" : "down";
  const role = isLeader ? "leader" : status ? status.role : "unknown";
  parts.role.className = `badge ${role}`;
  say(parts.role, ROLES[role] || "");
  parts.role.hidden = !status && !isLeader;
  say(parts.voter, node.voter ? "voter" : "non-voter");
  parts.voter.hidden = role === "learner";
  parts.reach.className = `badge ${status && !stopped ? "good" : "poor"}`;
  say(parts.reach, !status ? "no answer" : status.fatal ? "stopped" : status.needs_rejoin ? "must rejoin" : "answers");
  const facts = {
    term: status && count(status.term), last: status && count(status.last_log_index), commit: status && count(status.committed),
    applied: status && count(status.applied), behind: isLeader ? "leads" : count(node.lag_entries),
    contact: isLeader ? "leads" : age(node.last_contact_ms), snapshot: status && count(status.snapshot),
    store: status && bytes(status.storage.size_bytes), up: status && age(status.uptime_ms),
  };
  for (const [key] of FACTS) say(parts.facts[key], facts[key] || "–");
  const said = node.error || (status && (status.fatal || status.needs_rejoin));
  parts.trouble.hidden = !said;
  say(parts.trouble, said || "");
  say(parts.kind, status ? `${status.storage.adapter || "?"} · ${status.state_machine} · ${status.version}` : "");
  const page = node.id === cluster.asked ? null : pageOf(node);
  parts.link.hidden = !page;
  if (page && parts.link.getAttribute("href") !== page) parts.link.setAttribute("href", page);
  parts.link.setAttribute("aria-label", `the page of ${node.id}`);
  bar(parts.bar, node, span);
}

function spanOf(cluster) {
  const states = cluster.nodes.map((node) => node.status).filter(Boolean);
  const end = Math.max(1, ...states.map((status) => status.last_log_index || 0));
  return {start: Math.min(end - 1, ...states.map((status) => status.purged || 0)), end};
}

function bar(svg, node, {start, end}) {
  const x = (index) => Math.max(0, Math.min(1000, ((index - start) / (end - start)) * 1000));
  const status = node.status;
  const pieces = [draw("rect", {class: "t", x: 0, y: 7, width: 1000, height: 8, rx: 4})];
  let label = `${node.id} does not answer`;
  if (status && status.last_log_index !== null) {
    const first = x(status.purged || 0), last = x(status.last_log_index);
    const applied = x(Math.min(status.applied || 0, status.last_log_index));
    pieces.push(draw("rect", {class: "l", x: first, y: 7, width: Math.max(2, last - first), height: 8, rx: 4}));
    pieces.push(draw("rect", {class: "a", x: first, y: 7, width: Math.max(0, applied - first), height: 8, rx: 4}));
    if (status.snapshot !== null) {
      const at = Math.min(994, Math.max(6, x(status.snapshot)));
      pieces.push(draw("rect", {class: "s", x: at - 4, y: 3, width: 8, height: 16, rx: 2}));
    }
    if (status.committed !== null) pieces.push(draw("rect", {class: "c", x: Math.min(996, x(status.committed)), y: 1, width: 4, height: 20}));
    label = `log from ${(status.purged || 0) + 1} to ${status.last_log_index}, committed ${count(status.committed)}, applied ${count(status.applied)}`;
  }
  svg.setAttribute("aria-label", label);
  svg.replaceChildren(...pieces);
}

// --- charts ---------------------------------------------------------------------------------------------------------

function niceTop(value) {
  if (value <= 4) return 4;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value);
}

function chart(box, series, label) {
  const width = Math.max(200, box.clientWidth), height = Math.max(120, box.clientHeight);
  const left = 44, right = 8, top = 8, bottom = 20;
  const now = performance.now(), span = Math.max(30000, Math.min(SAMPLES * POLL_MS, now - (known.samples[0] || {at: now}).at));
  const values = series.flatMap((line) => line.points.map((point) => point[1])).filter((value) => value !== null);
  const high = niceTop(Math.max(0, ...values));
  const x = (at) => left + (1 - (now - at) / span) * (width - left - right);
  const y = (value) => top + (1 - value / high) * (height - top - bottom);
  const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label});
  for (const part of [0, 0.5, 1]) {
    const at = y(high * part);
    svg.append(draw("line", {class: "grid", x1: left, x2: width - right, y1: at, y2: at}));
    svg.append(draw("text", {x: left - 6, y: at + 4, "text-anchor": "end"}, count(high * part)));
  }
  svg.append(draw("text", {x: left, y: height - 4}, `${Math.round(span / 1000)} s ago`));
  svg.append(draw("text", {x: width - right, y: height - 4, "text-anchor": "end"}, "now"));
  for (const line of series) {
    for (const run of runs(line.points)) {
      const dots = run.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`);
      if (line.area) {
        const floor = `${x(run[run.length - 1][0]).toFixed(1)},${y(0)} ${x(run[0][0]).toFixed(1)},${y(0)}`;
        svg.append(draw("polygon", {class: "area", points: `${dots.join(" ")} ${floor}`, fill: line.colour}));
      }
      const shape = {class: "series", points: dots.length > 1 ? dots.join(" ") : `${dots[0]} ${dots[0]}`, stroke: line.colour};
      if (line.dash) shape["stroke-dasharray"] = line.dash;
      svg.append(draw("polyline", shape));
    }
  }
  box.replaceChildren(svg);
}

function runs(points) {
  const found = [];
  let run = [];
  for (const point of points) {
    if (point[1] === null) { if (run.length) found.push(run); run = []; } else run.push(point);
  }
  if (run.length) found.push(run);
  return found;
}

function charts() {
  const cluster = known.cluster;
  if (!cluster) return;
  const dashes = [null, "7 4", "2 4", "9 3 2 3"];
  const ids = cluster.nodes.map((node) => node.id);
  const lines = ids.map((id, at) => ({
    colour: colourOf(id), dash: dashes[at % dashes.length],
    points: known.samples.map((one) => [one.at, one.lag.has(id) ? one.lag.get(id) : null]),
  }));
  const latest = known.samples[known.samples.length - 1];
  const words = ids.map((id) => `${id} ${count(latest.lag.get(id))}`);
  chart($("lag-chart"), lines, `Entries behind the leader now: ${words.join(", ")}`);
  $("lag-legend").replaceChildren(...ids.map((id, at) => {
    const key = draw("svg", {width: 22, height: 8, "aria-hidden": "true"});
    const stroke = {x1: 0, x2: 22, y1: 4, y2: 4, stroke: colourOf(id), "stroke-width": 3};
    if (dashes[at % dashes.length]) stroke["stroke-dasharray"] = dashes[at % dashes.length];
    key.append(draw("line", stroke));
    return make("li", {}, key, `${id}: ${id === cluster.leader ? "leads" : count(latest.lag.get(id))}`);
  }));
  const rates = known.samples.map((one) => [one.at, one.rate]);
  const shown = latest.rate === null ? "not known yet" : count(Math.round(latest.rate));
  chart($("rate-chart"), [{colour: "var(--accent)", area: true, points: rates}], `Entries committed per second now: ${shown}`);
  const peak = Math.max(0, ...rates.map((point) => point[1] || 0));
  say($("rate-note"), `Now ${shown}, highest ${count(Math.round(peak))}.`);
}

// --- events ---------------------------------------------------------------------------------------------------------

function takeEvents(cluster) {
  const fresh = [];
  for (const node of cluster.nodes) {
    for (const event of node.events) {
      fresh.push({...event, node: node.id});
      known.lastEvent.set(node.id, Math.max(event.number, known.lastEvent.get(node.id) || 0));
    }
    const answers = Boolean(node.status);
    if (known.reached.has(node.id) && known.reached.get(node.id) !== answers) {
      fresh.push({node: node.id, at_ms: Date.now(), number: 0, kind: answers ? "answers" : "silent",
        message: answers ? `${node.id} answers again` : `${node.id} does not answer: ${node.error}`});
    }
    known.reached.set(node.id, answers);
  }
  if (!fresh.length) return;
  known.events = [...fresh, ...known.events].sort((a, b) => b.at_ms - a.at_ms || b.number - a.number).slice(0, EVENTS);
  showEvents();
}

function showEvents() {
  const only = $("event-node").value;
  const shown = known.events.filter((event) => !only || event.node === only);
  $("events-empty").hidden = shown.length > 0;
  $("events").replaceChildren(...shown.map((event) => {
    const at = new Date(event.at_ms);
    const clock = `${at.toTimeString().slice(0, 8)}.${String(at.getMilliseconds()).padStart(3, "0")}`;
    const kind = make("span", {class: "kind", text: event.kind});
    kind.style.setProperty("--node", colourOf(event.node));
    const said = make("p", {text: event.message});
    if (event.term) said.append(" ", make("span", {class: "term", text: `term ${count(event.term)}`}));
    return make("li", {}, make("time", {datetime: at.toISOString(), text: clock}), kind, said);
  }));
}

function foot(cluster) {
  const id = cluster.cluster_id ? `cluster id ${cluster.cluster_id}` : "no cluster id yet";
  say($("foot"), `${id} · what other nodes say comes over the peer connections of ${cluster.asked}`);
}

// --- the reader -----------------------------------------------------------------------------------------------------

function openToken() {
  $("token").value = "";
  $("token-dialog").showModal();
  $("token").focus();
}
$("token-open").addEventListener("click", openToken);
$("token-cancel").addEventListener("click", () => $("token-dialog").close());
$("token-clear").addEventListener("click", () => { sessionStorage.removeItem(TOKEN); $("token-dialog").close(); });
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = $("token").value.trim();
  if (token) sessionStorage.setItem(TOKEN, token);
  known.wanted = "";
  $("token").value = "";
  $("token-dialog").close();
  again(0);
});
$("pause").addEventListener("click", () => {
  known.paused = !known.paused;
  $("pause").setAttribute("aria-pressed", String(known.paused));
  if (known.paused) pulse("wait", "paused");
});
$("event-node").addEventListener("change", showEvents);
new ResizeObserver(() => charts()).observe($("lag-chart"));
turn();
})();
