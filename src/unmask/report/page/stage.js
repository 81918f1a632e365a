// The parts of the film section that are built once: controls, the two panes, the playback buttons, the timeline.

const ICONS = {
    first: "M2 2h2.5v12H2zM14 2v12L5.5 8z",
    back: "M11.5 2v12L3 8z",
    on: "M4.5 2v12L13 8z",
    last: "M11.5 2H14v12h-2.5zM2 2v12l8.5-6z",
    start: "M4 1.5v13L14 8z",
    pause: "M3.5 2h3.2v12H3.5zM9.3 2h3.2v12H9.3z",
    earlier: "M10.5 2L4.5 8l6 6 1.5-1.5L7.5 8 12 3.5z",
    later: "M5.5 2l6 6-6 6L4 12.500 8.500 8 4 3.500z",
};
const icon = (name) =>
    draw(
        "svg",
        { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true", class: name },
        draw("path", { d: ICONS[name] }),
    );
const iconButton = (label, name, onclick) =>
    el("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick }, icon(name));

const SPEEDS = [
    ["slow", 1400],
    ["normal", 700],
    ["fast", 220],
];

/** Build the controls that select run, training step, prompt and member; `section` keeps their nodes. */
function makeControls(section) {
    const select = (label, onpick) => {
        const box = el("select", { onchange: () => onpick(Number(box.value)) });
        return { box, node: el("label", { class: "field" }, el("span", { text: label }), box) };
    };
    section.runBox = select("Run", (run) => section.go({ run, film: 0, group: 0, member: 0, k: 0 }));
    section.groupBox = select("Prompt", (group) => section.go({ group, member: 0 }));
    section.stepSlider = el("input", {
        type: "range",
        min: 0,
        step: 1,
        "aria-label": "Training step",
        oninput: () => section.go({ film: Number(section.stepSlider.value) }),
    });
    section.stepText = el("output", {});
    const step = (by) => section.go({ film: clamp(section.pick.film + by, 0, section.run.films.length - 1) });
    section.memberHost = el("div", { class: "members-pick" });
    section.runs.forEach((run, i) => section.runBox.box.append(el("option", { value: i, text: run.name })));
    section.runBox.node.hidden = section.runs.length < 2;
    return el(
        "div",
        { class: "picks" },
        section.runBox.node,
        el(
            "div",
            { class: "field grow" },
            el("span", {}, "Training step ", section.stepText),
            el(
                "div",
                { class: "stepper" },
                iconButton("Previous saved rollout", "earlier", () => step(-1)),
                section.stepSlider,
                iconButton("Next saved rollout", "later", () => step(1)),
            ),
        ),
        section.groupBox.node,
        section.memberHost,
    );
}

/** Build the completion, the playback buttons, the timeline, the legend and the choices; `section` keeps the nodes that it draws into. */
function makeStage(section) {
    section.timeline = new Timeline((k) => section.go({ k }));
    section.playButton = el(
        "button",
        { type: "button", class: "play", "aria-label": "Play", onclick: () => section.toggle() },
        icon("start"),
        icon("pause"),
        el("span", { class: "word", text: "Play" }),
    );
    section.clock = el("p", { class: "clock" });
    section.viewHost = el("div", {});
    section.mainHost = el("div", { class: "stage-main" });
    section.guessHost = el("div", { class: "stage-guess" });
    section.guessTitle = el("h3", { text: "One-step guess" });
    section.guessReward = el("b", { class: "figure" });
    section.guessNote = el("p", { class: "soft" });
    section.facts = el("dl", { class: "facts" });
    section.detail = el("p", { class: "detail" });
    section.fills = el("div", { class: "fills" });
    section.matesHost = el("div", { class: "mates", role: "group", "aria-label": "Completions of the group at the same step" });
    section.promptText = el("pre", { class: "said", dir: "auto", tabindex: 0, role: "region", "aria-label": "Prompt" });
    section.answerText = el("pre", { class: "said", dir: "auto" });
    section.answerRow = el("div", {}, el("h3", { text: "Known answer" }), section.answerText);
    const main = el(
        "div",
        { class: "pane main-pane" },
        el("div", { class: "pane-head" }, el("h3", { text: "Completion so far" }), section.viewHost),
        section.mainHost,
        section.detail,
    );
    const side = el(
        "div",
        { class: "pane side" },
        el("div", { class: "pane-head" }, section.guessTitle, section.guessReward),
        el("div", { class: "side-body" }, section.guessHost, section.facts),
        section.guessNote,
        section.fills,
    );
    const transport = el(
        "div",
        { class: "transport", role: "group", "aria-label": "Playing" },
        iconButton("To the first step", "first", () => section.go({ k: 0 })),
        iconButton("One step back", "back", () => section.go({ k: section.pick.k - 1 })),
        section.playButton,
        iconButton("One step forward", "on", () => section.go({ k: section.pick.k + 1 })),
        iconButton("To the finished completion", "last", () => section.go({ k: section.film.num_steps })),
        choice(
            "Speed",
            "speed",
            SPEEDS.map(([label, value]) => ({ value, label })),
            section.delay,
            (value) => {
                section.delay = value;
            },
        ),
        section.clock,
    );
    // Completion, playback buttons and timeline are next to each other, so that all are visible at once.
    section.player = el("div", { class: "stage" }, main, transport, section.timeline.node, side);
    section.body.append(
        section.player,
        makeLegend(section),
        el(
            "p",
            { class: "hint keys" },
            "Keys: ",
            el("kbd", { text: "space" }),
            " plays, ",
            el("kbd", { text: "←" }),
            " ",
            el("kbd", { text: "→" }),
            " step, ",
            el("kbd", { text: "p" }),
            " ",
            el("kbd", { text: "n" }),
            " choose another completion of the group, ",
            el("kbd", { text: "[" }),
            " ",
            el("kbd", { text: "]" }),
            " another training step.",
        ),
        makeControls(section),
        el("div", { class: "prompt" }, el("div", {}, el("h3", { text: "Prompt" }), section.promptText), section.answerRow),
        el("h3", { text: "The other completions of the group at the same step" }),
        section.matesHost,
    );
    return section.player;
}

/** Build the explanation of the colours, the marks and the three rows of the timeline. */
function makeLegend(section) {
    const sample = (name, text, words) =>
        el("span", { class: "sign" }, el("i", { class: `sample ${name}`, "aria-hidden": "true", text }), words);
    section.legendEnd = el("span", {});
    section.boardLegend = [sample("clue", "", "given in the puzzle"), sample("wrong", "", "not the answer")];
    section.endLegend = el("span", { class: "sign" }, el("i", { "aria-hidden": "true", text: END }), "end of the text");
    const rows = [
        ["H", "Entropy of the tokens that the step writes, in nats. The tallest bar is the largest entropy of this path."],
        [
            "V",
            "Value of the state: the reward of the one-step guess. The diamond is the reward of the finished completion. The scale runs from 0 to the largest value.",
        ],
        [
            "A",
            "Advantage that training gave to the step. A filled bar upwards makes the step more likely; a dashed outline downwards makes it less likely. The longest bar is the largest advantage of this completion.",
        ],
    ];
    return el(
        "div",
        { class: "reading" },
        el(
            "div",
            { class: "legend" },
            el("span", { text: "entropy when written: 0" }),
            el("span", { class: "ramp", "aria-hidden": "true" }),
            section.legendEnd,
            sample("now", "", "written at this step"),
            sample("hidden", HIDDEN, "still hidden"),
            ...section.boardLegend,
            section.endLegend,
        ),
        el(
            "details",
            { class: "explained", "aria-label": "How to read the timeline" },
            el("summary", { text: "How to read the timeline" }),
            el(
                "dl",
                {},
                rows.map(([symbol, text]) =>
                    el("div", {}, el("dt", {}, el("i", { text: symbol }), el("sub", { text: "k" })), el("dd", { text })),
                ),
                el(
                    "div",
                    {},
                    el("dt", { text: "▲" }),
                    el("dd", { text: "A step that training selected and updated the model on." }),
                ),
                el(
                    "div",
                    {},
                    el("dt", {}, el("i", { text: "k" })),
                    el("dd", { text: "Index of the denoising step. It counts from 0, as in the equations, so step 1 is k = 0." }),
                ),
            ),
        ),
    );
}
