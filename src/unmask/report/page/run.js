// The run: curves over training with a line for each run, and the time of each phase.

const PANELS = [
    { keys: ["reward"], title: "Reward", note: "mean of a batch" },
    { keys: ["kl"], title: "KL to the reference", note: "nats, of a trained step", absent: "KL (none for β = 0)" },
    { keys: ["clip_ratio/region_mean"], title: "Clipped share", note: "of the views that are trained", isShare: true },
    { keys: ["diffusion/path_entropy"], title: "Entropy of a path", note: "nats, summed over its steps", fromZero: true },
    {
        keys: ["diffusion/mismatch_max"],
        title: "Mismatch",
        note: "largest difference between a recorded log-probability and the recomputed one, nats",
        fromZero: true,
    },
    {
        keys: ["diffusion/one_step_reward", "diffusion/branch_reward"],
        title: "Reward of one-step completions",
        note: "of the selected states",
        absent: "one-step rewards",
    },
    { keys: ["frac_reward_zero_std"], title: "Flat groups", note: "share whose rewards are all equal", isShare: true },
    { keys: ["completions/mean_length"], title: "Length", note: "tokens before the first end mark" },
    { keys: ["grad_norm"], title: "Gradient norm", note: "before clipping", fromZero: true },
    { keys: ["loss"], title: "Loss", note: "" },
];
const HEATS = [
    ["selected_by_step", "Trained denoising steps", "how often each step k was trained, over training"],
    ["entropy_by_step", "Entropy of denoising steps", "mean of each step k, nats, over training"],
];

const nameOf = (runs, run, own) => [runs.length > 1 ? run.name : "", own].filter(Boolean).join(", ");

/** Return the style of a run's line. Each run has the same colour in all charts, even if a chart lacks some runs. */
const styleOf = (runs, run, n) => (runs.length > 1 ? run + n * COLOURS * Math.ceil(runs.length / COLOURS) : n);

function accuracyChart(runs, curves) {
    const series = runs.flatMap((run, i) =>
        curves[i].evaluations.map((e, n) => ({ name: nameOf(runs, run, e.label), style: styleOf(runs, i, n), points: e.points })),
    );
    return series.length
        ? lineChart({
              title: "Accuracy",
              note: "solved share of held-out examples, with 95 % intervals",
              series,
              xLabel: "training step",
              isWhole: true,
              isShare: true,
              dots: true,
          })
        : null;
}

function panel({ keys, title, note, fromZero, isShare }, runs, curves) {
    const series = runs.flatMap((run, i) =>
        keys
            .filter((key) => curves[i].metrics[key])
            .map((key, n) => ({
                name: nameOf(runs, run, keys.length > 1 || runs.length === 1 ? key : ""),
                style: styleOf(runs, i, n),
                points: curves[i].steps.map((step, n) => [step, curves[i].metrics[key][n]]).filter(([, value]) => value !== null),
            })),
    );
    return series.length ? lineChart({ title, note, series, fromZero, isShare, isWhole: true, xLabel: "training step" }) : null;
}

async function runSection(runs) {
    const curves = await Promise.all(runs.map((run) => block(`run-${run.index}`)));
    const node = el(
        "section",
        { id: "run", "aria-labelledby": "run-title" },
        el("h2", { id: "run-title", text: runs.length > 1 ? "The runs" : "The run" }),
    );
    const binned = runs
        .filter((run, i) => curves[i].bin > 1)
        .map((run) => `${nameOf(runs, run, "") || "a point"}: mean of ${curves[run.index].bin} steps`);
    node.append(
        el("p", {
            class: "lead",
            text: `Over ${short(Math.max(...curves.map((c) => c.steps.at(-1) ?? 0)))} training steps. Point at a chart, or use the arrow keys, to read its values.${binned.length ? ` Each point is a mean (${binned.join("; ")}).` : ""}`,
        }),
    );
    const missing = PANELS.filter(({ keys }) => !curves.some((c) => keys.some((key) => c.metrics[key])));
    const grid = el(
        "div",
        { class: "charts" },
        accuracyChart(runs, curves),
        PANELS.map((p) => panel(p, runs, curves)),
    );
    for (const [key, title, note] of HEATS) {
        runs.forEach((run, i) => {
            const heat = curves[i].heat[key];
            if (heat) grid.append(heatChart({ title: nameOf(runs, run, title), note, ...heat, digits: 2 }));
        });
    }
    node.append(grid);
    if (missing.length)
        node.append(
            el("p", { class: "soft", text: `Not logged: ${missing.map((p) => p.absent ?? p.title.toLowerCase()).join(", ")}.` }),
        );
    const timed = runs
        .map((run, i) => ({ name: run.name, seconds: curves[i].seconds }))
        .filter(({ seconds: s }) => Object.keys(s).length);
    if (timed.length) node.append(el("h3", { text: "Where the time went" }), timeBars(timed));
    return node;
}

/** Return the first and last accuracy of each evaluation, for the head of the page. */
async function headline(run) {
    const { evaluations } = await block(`run-${run.index}`);
    return evaluations.map(({ label, points }) => {
        const [first, last] = [points[0], points.at(-1)];
        const cost = (p) => (p[4] === null ? "" : `, ${number(p[4], 1)} forward passes`);
        const interval = (p) => `${number(p[1], 3)} (${number(p[2], 3)} to ${number(p[3], 3)}${cost(p)})`;
        return el(
            "div",
            { class: "headline" },
            el("span", { text: `solved, ${label}` }),
            el("b", { text: number(last[1], 3) }),
            el("small", {
                text:
                    points.length > 1
                        ? `${interval(first)} at step ${first[0]}, ${interval(last)} at step ${last[0]}`
                        : `${interval(last)} at step ${last[0]}`,
            }),
        );
    });
}

function settings(runs) {
    return el(
        "section",
        { id: "settings", "aria-labelledby": "settings-title" },
        el("h2", { id: "settings-title", text: "Settings" }),
        runs.map((run) =>
            el(
                "details",
                { "aria-label": `All settings of ${run.name}` },
                el("summary", { text: `${run.name}: all settings` }),
                el("pre", {
                    class: "said code",
                    tabindex: 0,
                    role: "region",
                    "aria-label": `Settings of ${run.name}`,
                    text: run.config,
                }),
            ),
        ),
    );
}
