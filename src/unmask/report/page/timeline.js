// The denoising steps of one completion as columns with rows for entropy, value and advantage, above the slider.

const GUTTER = 92,
    NARROW_GUTTER = 34,
    EDGE = 12;

class Timeline {
    /** Create the timeline. It calls onmove(k) with the selected step from 0 to T; T is the finished completion. */
    constructor(onmove) {
        this.onmove = onmove;
        this.slider = el("input", {
            type: "range",
            min: 0,
            step: 1,
            class: "scrub",
            "aria-label": "Denoising step",
            oninput: () => onmove(Number(this.slider.value)),
        });
        this.plot = el("div", { class: "rows" });
        this.node = el("div", { class: "timeline" }, this.plot, this.slider);
        this.width = 0;
        this.plot.addEventListener("pointerdown", (event) => {
            const k = Math.round((event.offsetX - this.left) / this.column - 0.5);
            if (k >= 0 && k <= this.steps) onmove(k);
        });
        whenSized(this.node, (width) => {
            this.width = width;
            this.render();
        });
    }

    show(film, member, words) {
        Object.assign(this, { film, member, words, steps: film.num_steps });
        this.slider.max = this.steps;
        this.render();
    }

    render() {
        if (!this.member || !this.width) return;
        const { member, steps, width } = this;
        const left = (this.left = width < 560 ? NARROW_GUTTER : GUTTER);
        const column = (this.column = (width - left - EDGE) / (steps + 1));
        const center = (k) => left + (k + 0.5) * column;
        this.center = center;
        const isNarrow = left === NARROW_GUTTER;
        const rows = [
            { name: "entropy", symbol: "H", height: 46, draw: (g, y0, h) => this.entropyRow(g, y0, h) },
            { name: "value", symbol: "V", height: 46, draw: (g, y0, h) => this.valueRow(g, y0, h) },
            { name: "advantage", symbol: "A", height: 46, draw: (g, y0, h) => this.advantageRow(g, y0, h) },
        ];
        const marks = 18;
        const total = rows.reduce((sum, row) => sum + row.height, 0) + marks;
        const svg = draw("svg", {
            width,
            height: total,
            viewBox: `0 0 ${width} ${total}`,
            role: "img",
            "aria-label": this.words,
        });
        this.band = draw("rect", { class: "now-band", y: 0, height: total, width: Math.max(column, 3) });
        svg.append(this.band);
        let y = 0;
        for (const row of rows) {
            const group = draw("g", {});
            const label = draw("text", { class: "row-label", x: 0, y: y + row.height / 2 + 4 });
            if (!isNarrow) label.append(draw("tspan", { text: row.name }));
            label.append(
                draw("tspan", { class: "symbol", dx: isNarrow ? 0 : 5, text: row.symbol }),
                draw("tspan", { class: "index", dy: 3, text: "k" }),
            );
            group.append(label);
            row.draw(group, y + 6, row.height - 14);
            svg.append(group);
            y += row.height;
        }
        for (const k of member.selected) {
            const x = center(k);
            svg.append(draw("path", { class: "mark", d: `M${x - 6} ${y + 14}L${x} ${y + 4}L${x + 6} ${y + 14}Z` }));
        }
        if (member.selected.length && !isNarrow)
            svg.append(draw("text", { class: "row-label mark-label", x: 0, y: y + 15, text: "▲ trained" }));
        this.plot.replaceChildren(svg);
        // The centre of the thumb, which is 20 px wide, moves over the centres of the columns.
        this.slider.style.setProperty("--from", `${center(0) - 10}px`);
        this.slider.style.setProperty("--length", `${steps * column + 20}px`);
        if (this.k !== undefined) this.at(this.k);
    }

    at(k) {
        this.k = k;
        this.slider.value = k;
        if (this.band) {
            this.band.setAttribute("x", this.center(k) - Math.max(this.column, 3) / 2);
            this.plot.querySelectorAll("[data-k]").forEach((node) => node.classList.toggle("here", Number(node.dataset.k) === k));
        }
    }

    bars(group, values, y, zero, extra = () => "") {
        const w = clamp(this.column * 0.62, 1.5, 40);
        for (const [k, value] of values) {
            const [top, bottom] = [Math.min(y(value), zero), Math.max(y(value), zero)];
            group.append(
                draw("rect", {
                    class: `bar-h ${extra(k, value)}`,
                    "data-k": k,
                    x: this.center(k) - w / 2,
                    width: w,
                    y: bottom - top < 1.5 ? zero - 0.75 : top,
                    height: Math.max(1.5, bottom - top),
                    rx: Math.min(2, w / 4),
                }),
            );
            if (this.column > 44)
                group.append(
                    draw("text", {
                        class: "mini",
                        x: this.center(k),
                        "text-anchor": "middle",
                        y: value < 0 ? bottom + 9 : top - 2.5,
                        text: number(value, 2, extra(k, value) !== ""),
                    }),
                );
        }
    }

    baseline(group, y) {
        group.append(
            draw("line", { class: "base", x1: this.left, x2: this.left + this.column * (this.steps + 1), y1: y, y2: y }),
        );
    }

    /** Label the largest value of a row if the columns are too narrow for a number each. */
    scale(group, y, top) {
        if (this.column <= 44)
            group.append(draw("text", { class: "mini", x: this.left - 4, "text-anchor": "end", y: y + 3, text: number(top, 2) }));
    }

    entropyRow(group, y0, height) {
        const values = this.member.joint.map((value, k) => [k, value]).filter(([k]) => this.wrote(k));
        const top = Math.max(...values.map(([, v]) => v), 1e-9);
        const y = linear([0, top], [y0 + height, y0 + 6]);
        this.baseline(group, y0 + height);
        this.scale(group, y(top), top);
        this.bars(group, values, y, y0 + height);
    }

    valueRow(group, y0, height) {
        const { member } = this;
        const known = Object.entries(member.values).map(([k, v]) => [Number(k), v]);
        const points = [...known, [this.steps, member.reward]];
        const [low, high] = [Math.min(0, ...points.map(([, v]) => v)), Math.max(1e-9, ...points.map(([, v]) => v))];
        const y = linear([low, high], [y0 + height, y0 + 6]);
        this.baseline(group, y(Math.max(low, 0)));
        this.scale(group, y(high), high);
        if (!known.length) {
            group.append(
                draw("text", { class: "none", x: this.left + 6, y: y0 + height / 2 + 4, text: "no one-step guesses were saved" }),
            );
        }
        const x = (k) => this.center(k);
        if (known.length > 1) group.append(draw("path", { class: "value-line", d: path(points, x, y) }));
        for (const [k, value] of points) {
            const isEnd = k === this.steps;
            const r = clamp(this.column / 4, 1.5, 4);
            group.append(
                isEnd
                    ? draw("rect", {
                          class: "value-end",
                          "data-k": k,
                          x: x(k) - 5,
                          y: y(value) - 5,
                          width: 10,
                          height: 10,
                          transform: `rotate(45 ${x(k)} ${y(value)})`,
                      })
                    : draw("circle", { class: "value-dot", "data-k": k, cx: x(k), cy: y(value), r }),
            );
            if (this.column > 44)
                group.append(
                    draw("text", {
                        class: "mini",
                        x: x(k),
                        "text-anchor": "middle",
                        y: y(value) - (isEnd ? 9 : 7),
                        text: number(value, 2),
                    }),
                );
        }
    }

    advantageRow(group, y0, height) {
        const { member } = this;
        const values = Object.entries(member.advantages).map(([k, v]) => [Number(k), v]);
        const size = Math.max(...values.map(([, v]) => Math.abs(v)), 1e-9);
        const y = linear([-size, size], [y0 + height, y0 + 4]);
        const zero = y(0);
        this.baseline(group, zero);
        if (values.length) this.scale(group, y(size), size);
        this.bars(group, values, y, zero, (k, v) => (v < 0 ? "minus" : "plus"));
        for (const k of Object.keys(member.fills))
            group.append(
                draw("text", {
                    class: "mini",
                    x: this.center(Number(k)),
                    y: zero - 4,
                    "text-anchor": "middle",
                    text: "↓ listed below",
                }),
            );
        if (!values.length && !Object.keys(member.fills).length) {
            const text =
                member.whole === null
                    ? member.selected.length
                        ? "not recorded by the version that saved this"
                        : "no step of this path was trained"
                    : `one for the whole completion: ${number(member.whole, 3, true)}`;
            group.append(draw("text", { class: "none", x: this.left + 6, y: zero - 6, text }));
        }
    }

    wrote(k) {
        this.written ??= new Map();
        if (!this.written.has(this.member)) this.written.set(this.member, new Set(this.member.when));
        return this.written.get(this.member).has(k);
    }
}
