// Line charts with bands, heat maps and bars. Each can be read with a pointer, with keys, and without colour.

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 2", "1 2"];

const COLOURS = 8;
const BANDS = 6;
const dash = (style) => DASHES[(style + Math.floor(style / COLOURS)) % DASHES.length];
const colour = (style) => `s${style % COLOURS}`;

const linear =
    ([a, b], [p, q]) =>
    (value) =>
        p + ((value - a) / (b - a || 1)) * (q - p);

/** Return about `count` round numbers that cover the range from `low` to `high`. */
function ticks(low, high, count = 4) {
    // Round a level that is not zero, so that its line is in the middle.
    if (low === high) [low, high] = low ? [low - Math.abs(low) / 10, low + Math.abs(low) / 10] : [0, 1];
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    const found = [];
    for (let i = Math.floor(low / step + 1e-9); i <= Math.ceil(high / step - 1e-9); i++)
        found.push(Number((i * step).toPrecision(10)));
    return found;
}

/** Return as many of the ascending values as have space for a label, always with the last one. */
function spaced(values, x, room = 18) {
    const found = [];
    for (const value of [...values].reverse()) if (!found.length || x(found[0]) - x(value) >= room) found.unshift(value);
    return found;
}

/** Return a moving mean over about a fortieth of the points. */
function smooth(points) {
    const reach = Math.floor(points.length / 80);
    if (points.length < 60 || reach < 1) return null;
    return points.map(([x], i) => {
        const part = points.slice(Math.max(0, i - reach), i + reach + 1);
        return [x, part.reduce((sum, [, y]) => sum + y, 0) / part.length];
    });
}

const path = (points, x, y) => points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");

function swatch(style) {
    return draw(
        "svg",
        { class: `swatch ${colour(style)}`, width: 26, height: 10, "aria-hidden": "true" },
        draw("line", { x1: 1, x2: 25, y1: 5, y2: 5, class: "line", "stroke-dasharray": dash(style) }),
    );
}

/**
 * A chart of lines.
 * series: [{name, style, points: [[x, y, low, high]]}], ascending in x; a point without low and high has no band.
 * isShare: y is from 0 to at most 1; isWhole: x counts something, so no label stands between its numbers; isMarked: labels of x
 * stand where points are, as far as there is room. Of many lines, those in sight that end highest show their bands.
 */
function lineChart({
    title,
    note,
    series,
    xLabel,
    digits = 3,
    fromZero = false,
    isShare = false,
    height = 168,
    xFormat = short,
    dots = false,
    isWhole = false,
    isMarked = false,
}) {
    series = series.filter((s) => s.points.length);
    const every = [...new Set(series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
    const figure = el(
        "figure",
        { class: "chart" },
        el("figcaption", {}, el("h4", { text: title }), note && el("p", { text: note })),
    );
    if (!every.length) return figure;
    const say = (value) => (Math.abs(value) < 10 ** -digits && value !== 0 ? short(value) : number(value, digits));
    const outputs = series.map(() => el("output", { "aria-live": "off" }));
    const off = new Set();
    const named = (s) => {
        if (series.length < 2) return el("span", { text: s.name });
        const toggle = () => {
            off.has(s.style) ? off.delete(s.style) : off.add(s.style);
            button.setAttribute("aria-pressed", String(!off.has(s.style)));
            dim();
        };
        const button = el("button", {
            type: "button",
            class: "series",
            "aria-pressed": "true",
            title: "Show or hide this line",
            text: s.name,
            onclick: toggle,
        });
        return button;
    };
    // The line under the pointer is highlighted.
    const bringOut = (s) =>
        slider
            .querySelectorAll("[data-series]")
            .forEach((g) => g.classList.toggle("back", s !== null && Number(g.dataset.series) !== s.style));
    const dim = () => {
        const inSight = series.filter((s) => !off.has(s.style)).sort((a, b) => b.points.at(-1)[1] - a.points.at(-1)[1]);
        const banded = new Set(inSight.slice(0, BANDS).map((s) => s.style));
        slider.querySelectorAll("[data-series]").forEach((g) => {
            g.classList.toggle("off", off.has(Number(g.dataset.series)));
            g.classList.toggle("plain", !banded.has(Number(g.dataset.series)));
        });
    };
    figure.append(
        el(
            "ul",
            { class: "key" },
            series.map((s, i) =>
                el(
                    "li",
                    { onpointerenter: () => bringOut(s), onpointerleave: () => bringOut(null) },
                    swatch(s.style),
                    named(s),
                    outputs[i],
                ),
            ),
        ),
    );
    const at = el("span", { class: "at" });
    const slider = el("div", {
        class: "plot",
        role: "slider",
        tabindex: 0,
        "aria-label": `${title}: read off values`,
        "aria-valuemin": every[0],
        "aria-valuemax": every.at(-1),
        "aria-orientation": "horizontal",
    });
    figure.append(slider, el("p", { class: "axis" }, el("span", { text: xLabel }), at));
    let cursor = every.length - 1;
    let place = () => {};

    const nearest = (s, x) => s.points.reduce((best, p) => (Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best));
    function read(index) {
        cursor = clamp(index, 0, every.length - 1);
        const x = every[cursor];
        const texts = series.map((s) => {
            const [, y, low, high] = nearest(s, x);
            return say(y) + (low === undefined || low === null ? "" : ` (${say(low)} to ${say(high)})`);
        });
        texts.forEach((text, i) => (outputs[i].textContent = text));
        at.textContent = `at ${xFormat(x)}`;
        slider.setAttribute("aria-valuenow", x);
        slider.setAttribute("aria-valuetext", `${xFormat(x)}: ${series.map((s, i) => `${s.name} ${texts[i]}`).join(", ")}`);
        place(x);
    }

    function render(width) {
        const [right, top, bottom] = [10, 8, 20];
        const values = series.flatMap((s) => s.points.flatMap((p) => p.slice(1).filter((v) => v !== null && v !== undefined)));
        // One outlier in a hundred must not flatten the rest.
        const sorted = [...values].sort((a, b) => a - b);
        const low = isShare ? 0 : fromZero ? Math.min(0, sorted[0]) : sorted[Math.floor(sorted.length * 0.005)];
        const high = isShare ? Math.min(1, sorted.at(-1)) : sorted[Math.ceil((sorted.length - 1) * 0.995)];
        const marks = ticks(low, high);
        // Room for the longest label, at 6.6 px a letter.
        const left = Math.max(44, 10 + 6.6 * Math.max(...marks.map((mark) => short(mark).length)));
        const x = linear([every[0], every.at(-1) === every[0] ? every[0] + 1 : every.at(-1)], [left, width - right]);
        const y = linear([marks[0], marks.at(-1)], [height - bottom, top]);
        const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
        const clip = `clip-${Math.random().toString(36).slice(2)}`;
        svg.append(
            draw(
                "clipPath",
                { id: clip },
                draw("rect", { x: left, y: top - 2, width: width - left - right + 8, height: height - top - bottom + 4 }),
            ),
        );
        for (const mark of marks) {
            svg.append(
                draw("line", { class: "grid", x1: left, x2: width - right, y1: y(mark), y2: y(mark) }),
                draw("text", { class: "tick", x: left - 6, y: y(mark) + 4, "text-anchor": "end", text: short(mark) }),
            );
        }
        const ends = isMarked
            ? spaced(every, x)
            : ticks(every[0], every.at(-1), width < 330 ? 2 : 4).filter(
                  (t) => t >= every[0] && t <= every.at(-1) && (!isWhole || Number.isInteger(t)),
              );
        for (const mark of ends)
            svg.append(
                draw("text", {
                    class: "tick",
                    x: x(mark),
                    y: height - 5,
                    "text-anchor": mark === ends.at(-1) && x(mark) > width - 30 ? "end" : "middle",
                    text: xFormat(mark),
                }),
            );
        const lines = draw("g", { "clip-path": `url(#${clip})` });
        for (const s of series) {
            const group = draw("g", { class: colour(s.style), "data-series": s.style });
            const banded = s.points.filter((p) => p[2] !== undefined && p[2] !== null);
            if (banded.length > 1) {
                const back = [...banded].reverse().map((p) => [p[0], p[2]]);
                group.append(
                    draw("path", {
                        class: "band",
                        d: `${path(
                            banded.map((p) => [p[0], p[3]]),
                            x,
                            y,
                        )}L${path(back, x, y).slice(1)}Z`,
                    }),
                );
            }
            const mean = smooth(s.points);
            if (mean) group.append(draw("path", { class: "raw", d: path(s.points, x, y) }));
            group.append(draw("path", { class: "line", d: path(mean ?? s.points, x, y), "stroke-dasharray": dash(s.style) }));
            if (dots || s.points.length < 2) {
                for (const p of s.points) {
                    if (p[2] !== undefined && p[2] !== null)
                        group.append(draw("line", { class: "whisker", x1: x(p[0]), x2: x(p[0]), y1: y(p[2]), y2: y(p[3]) }));
                    group.append(draw("circle", { class: "dot", cx: x(p[0]), cy: y(p[1]), r: 3 }));
                }
            }
            lines.append(group);
        }
        const line = draw("line", { class: "cursor", y1: top, y2: height - bottom });
        svg.append(lines, line);
        slider.replaceChildren(svg);
        dim();
        place = (value) => {
            line.setAttribute("x1", x(value));
            line.setAttribute("x2", x(value));
        };
        slider.onpointermove = (event) => {
            const target = every[0] + ((event.offsetX - left) / (width - left - right)) * (every.at(-1) - every[0]);
            read(every.reduce((best, v, i) => (Math.abs(v - target) < Math.abs(every[best] - target) ? i : best), 0));
        };
        read(cursor);
    }

    slider.onkeydown = (event) => {
        const big = Math.max(1, Math.round(every.length / 10));
        const moves = {
            ArrowLeft: cursor - 1,
            ArrowRight: cursor + 1,
            PageDown: cursor - big,
            PageUp: cursor + big,
            Home: 0,
            End: every.length - 1,
        };
        if (!(event.key in moves)) return;
        event.preventDefault();
        event.stopPropagation();
        read(moves[event.key]);
    };
    slider.onpointerleave = () => read(every.length - 1);
    read(cursor);
    whenSized(slider, render);
    return figure;
}

/** Draw a heat map of denoising steps (upwards) against training steps; darker cells have larger values. */
function heatChart({ title, note, steps, values, digits }) {
    const rows = Math.max(...values.map((column) => column.length));
    const largest = Math.max(...values.flat(), 1e-12);
    const readout = el("p", { class: "axis" }, el("span", { text: "training →, step k ↑" }), el("span", { class: "at" }));
    const slider = el("div", {
        class: "plot heat",
        role: "slider",
        tabindex: 0,
        "aria-label": `${title}: read off values`,
        "aria-valuemin": 0,
        "aria-valuemax": values.length * rows - 1,
    });
    const figure = el(
        "figure",
        { class: "chart" },
        el("figcaption", {}, el("h4", { text: title }), note && el("p", { text: note })),
        slider,
        readout,
    );
    let [column, row] = [values.length - 1, 0];
    let place = () => {};
    function read(c, r) {
        [column, row] = [clamp(c, 0, values.length - 1), clamp(r, 0, rows - 1)];
        const [from, to] = steps[column];
        const text = `step${from === to ? ` ${from}` : `s ${from} to ${to}`}, k = ${row}: ${number(values[column][row], digits)}`;
        readout.lastChild.textContent = text;
        slider.setAttribute("aria-valuenow", column * rows + row);
        slider.setAttribute("aria-valuetext", text);
        place();
    }
    function render(width) {
        const height = 168,
            [left, top, bottom, right] = [44, 8, 20, 10];
        const [w, h] = [(width - left - right) / values.length, (height - top - bottom) / rows];
        const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
        values.forEach((cells, c) =>
            cells.forEach((value, r) => {
                svg.append(
                    draw("rect", {
                        class: "heat-cell",
                        x: left + c * w,
                        y: height - bottom - (r + 1) * h,
                        width: w + 0.4,
                        height: h + 0.4,
                        vars: { "--t": (value / largest).toFixed(4) },
                    }),
                );
            }),
        );
        for (const r of [...new Set([0, Math.floor((rows - 1) / 2), rows - 1])])
            svg.append(
                draw("text", {
                    class: "tick",
                    x: left - 6,
                    y: height - bottom - (r + 0.5) * h + 4,
                    "text-anchor": "end",
                    text: String(r),
                }),
            );
        svg.append(
            draw("text", { class: "tick", x: left, y: height - 5, text: short(steps[0][0]) }),
            draw("text", { class: "tick", x: width - right, y: height - 5, "text-anchor": "end", text: short(steps.at(-1)[1]) }),
        );
        const box = draw("rect", { class: "cursor-box", width: w, height: h });
        svg.append(box);
        slider.replaceChildren(svg);
        place = () => {
            box.setAttribute("x", left + column * w);
            box.setAttribute("y", height - bottom - (row + 1) * h);
        };
        slider.onpointermove = (event) =>
            read(Math.floor((event.offsetX - left) / w), Math.floor((height - bottom - event.offsetY) / h));
        read(column, row);
    }
    slider.onkeydown = (event) => {
        const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
        if (!(event.key in moves)) return;
        event.preventDefault();
        event.stopPropagation();
        const [dc, dr] = moves[event.key];
        read(column + dc, row + dr);
    };
    read(column, row);
    whenSized(slider, render);
    return figure;
}

// Phases of a training step, in their order. A phase has the same colour and pattern in all runs and reports.
const PHASES = ["rollout", "update", "evaluation", "guesses"];
const phase = (name) => (PHASES.includes(name) ? PHASES.indexOf(name) : PHASES.length);

/** Draw the time of each phase: one bar for each run, whose parts differ by pattern and name. */
function timeBars(runs) {
    const longest = Math.max(...runs.map((run) => Object.values(run.seconds).reduce((a, b) => a + b, 0)));
    return el(
        "div",
        { class: "times" },
        runs.map((run) => {
            const parts = Object.entries(run.seconds).sort(([a], [b]) => phase(a) - phase(b));
            const total = parts.reduce((sum, [, value]) => sum + value, 0);
            return el(
                "div",
                { class: "time" },
                runs.length > 1 ? el("h5", { text: run.name }) : null,
                el(
                    "div",
                    { class: "bar", "aria-hidden": "true", vars: { "--whole": total / longest } },
                    parts.map(([name, value]) =>
                        el("span", { class: `part p${phase(name)}`, vars: { "--share": value / total } }),
                    ),
                ),
                el(
                    "ul",
                    { class: "parts" },
                    parts.map(([name, value]) =>
                        el(
                            "li",
                            {},
                            el("i", { class: `part p${phase(name)}`, "aria-hidden": "true" }),
                            el("span", { text: name }),
                            el("b", { text: seconds(value) }),
                            el("span", { class: "soft", text: `${number((100 * value) / total, 0)} %` }),
                        ),
                    ),
                ),
            );
        }),
    );
}
