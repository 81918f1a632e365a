// The denoising film: a training step, a prompt, a member of its group, and the steps in which its completion was written.

/** Return the film of a saved rollout: its members with their arrays as plain lists; guesses stay rows of the film. */
async function filmAt(run, step) {
    const [film, pieces] = await Promise.all([block(`film-${run.index}-${step}`), block(`pieces-${run.index}`)]);
    if (film.pieces) return film;
    film.pieces = pieces;
    film.groups
        .flatMap((group) => group.members)
        .forEach((member, row) => {
            member.tokens = Array.from(film.arrays.tokens(row));
            member.when = Array.from(film.arrays.when(row));
            member.joint = Array.from(film.arrays.joint(row));
            member.entropy = Array.from(film.arrays.entropy(row), (value) => value * NATS);
            member.probability = Array.from(film.arrays.probability(row), (value) => value / 65535);
        });
    return film;
}

class FilmSection {
    constructor(runs) {
        this.runs = runs;
        this.pick = { run: 0, film: 0, group: 0, member: 0, k: 0 };
        this.delay = 700;
        this.said = el("p", { class: "unseen", role: "status", "aria-live": "polite" });
        this.body = el("div", { class: "film-body" });
        this.node = el(
            "section",
            { id: "film", "aria-labelledby": "film-title" },
            el("h2", { id: "film-title", text: "The denoising film" }),
            this.body,
            this.said,
        );
        document.addEventListener("keydown", (event) => this.key(event));
    }

    get run() {
        return this.runs[this.pick.run];
    }

    /** Show a selection, given its changes; the rest of the selection stays if possible. */
    async go(change, isPlaying = false) {
        if (!isPlaying) this.stop();
        const before = { ...this.pick };
        Object.assign(this.pick, change);
        const { run } = this;
        this.pick.film = clamp(this.pick.film, 0, run.films.length - 1);
        const ticket = (this.ticket = {});
        const film = await filmAt(run, run.films[this.pick.film]);
        if (ticket !== this.ticket) return;
        this.film = film;
        const groups = film.groups.length;
        this.pick.group = clamp(this.pick.group, 0, groups - 1);
        this.group = film.groups[this.pick.group];
        this.pick.member = clamp(this.pick.member, 0, this.group.members.length - 1);
        this.member = this.group.members[this.pick.member];
        this.pick.k = clamp(this.pick.k, 0, film.num_steps);
        const isOther = ["run", "film", "group", "member"].some((name) => before[name] !== this.pick[name]) || !this.stage;
        if (isOther) this.build();
        this.frame();
    }

    build() {
        const { film, group, member, run, pick } = this;
        this.stage ??= makeStage(this);
        this.runBox.box.value = pick.run;
        this.stepSlider.max = run.films.length - 1;
        this.stepSlider.value = pick.film;
        this.stepSlider.setAttribute(
            "aria-valuetext",
            `step ${film.step}, saved rollout ${pick.film + 1} of ${run.films.length}`,
        );
        this.stepText.textContent = String(film.step);
        this.groupBox.box.replaceChildren(
            ...film.groups.map((g, i) =>
                el("option", { value: i, text: `${i + 1}${g.prompt ? `: ${g.prompt.slice(0, 48).replace(/\s+/g, " ")}` : ""}` }),
            ),
        );
        this.groupBox.box.value = pick.group;
        const members = choice(
            "Member of the group",
            "member",
            group.members.map((m, i) => ({ value: i, label: `${i + 1}`, title: `reward ${number(m.reward, 3)}` })),
            pick.member,
            (i) => this.go({ member: i }),
        );
        this.memberHost.replaceChildren(members);
        this.kinds = [
            ...(group.layout.kind === "board" ? [["board", "Board"]] : []),
            ...(group.layout.kind === "code" ? [["code", "Code"]] : []),
            ["text", "Text"],
            ["tokens", "Tokens"],
        ];
        if (!this.kinds.some(([kind]) => kind === this.kind)) this.kind = this.kinds[0][0];
        this.viewHost.replaceChildren(
            choice(
                "Show as",
                "kind",
                this.kinds.map(([value, label]) => ({ value, label })),
                this.kind,
                (kind) => {
                    this.kind = kind;
                    this.build();
                    this.frame();
                },
            ),
        );
        this.promptText.textContent = group.prompt ?? "The version of unmask that saved this rollout did not save its prompt.";
        this.answerText.textContent = group.answer ?? "";
        this.answerRow.hidden = group.answer === null;
        const common = {
            film,
            layout: group.layout,
            scale: run.scale,
            answer: group.layout.kind === "board" ? group.answer : null,
        };
        this.main = new Tokens({
            ...common,
            member,
            kind: this.kind,
            size: "big",
            label: "Completion",
            onlook: (i) => this.look(i),
        });
        this.guessTokens = new Tokens({ ...common, member, kind: this.kind, size: "middle", label: "One-step guess" });
        this.mainHost.replaceChildren(this.main.node);
        this.guessHost.replaceChildren(this.guessTokens.node);
        this.mates = group.members.map((mate, i) => {
            const tokens = new Tokens({
                ...common,
                member: mate,
                kind: this.kind,
                size: "small",
                label: `State of member ${i + 1}`,
            });
            const best = Math.max(...group.members.map((m) => m.reward), 1e-9);
            const card = el(
                "button",
                {
                    type: "button",
                    class: "mate",
                    "aria-pressed": String(i === pick.member),
                    "aria-label": `Member ${i + 1}, reward ${number(mate.reward, 3)}`,
                    onclick: () => this.go({ member: i }),
                },
                tokens.node,
                el(
                    "span",
                    { class: "mate-line" },
                    el("span", { text: `${i + 1}` }),
                    el("span", { class: "meter", "aria-hidden": "true", vars: { "--share": clamp(mate.reward / best, 0, 1) } }),
                    el("b", { text: number(mate.reward, 3) }),
                ),
            );
            return { tokens, card };
        });
        this.matesHost.replaceChildren(...this.mates.map((mate) => mate.card));
        this.legendEnd.textContent = `${run.scale} nats or more`;
        const parts = [
            `Entropy, value and advantage of ${film.num_steps} denoising steps.`,
            member.selected.length ? `Trained: step k = ${member.selected.join(", ")}.` : "No step of this path was trained.",
        ];
        this.timeline.show(film, member, parts.join(" "));
        this.looked = null;
        this.detail.textContent = "Point at a token, or select it with the keyboard, to read its step, probability and entropy.";
    }

    /** Show the selected step. */
    frame() {
        const { film, member } = this;
        const { k } = this.pick;
        const isEnd = k >= film.num_steps;
        for (const sign of this.boardLegend) sign.hidden = this.kind !== "board";
        this.endLegend.hidden = !member.tokens.includes(film.eos);
        this.main.show(k);
        for (const mate of this.mates) mate.tokens.show(k);
        const where = isEnd ? `Finished after ${film.num_steps} steps` : `Step ${k + 1} of ${film.num_steps}`;
        this.clock.replaceChildren(el("b", { text: where }), el("span", { class: "soft", text: isEnd ? "" : `k = ${k}` }));
        const more = isEnd ? "" : `, k = ${k}${member.selected.includes(k) ? ", trained" : ""}`;
        this.timeline.slider.setAttribute("aria-valuetext", where + more);
        this.timeline.at(k);
        this.main.node.setAttribute("aria-label", `Completion, ${where.toLowerCase()}`);
        this.showGuess(guessAt(film, member, k), isEnd);
        const rows = factsOf(film, member, k);
        this.facts.replaceChildren(
            ...rows.map(([name, symbol, text]) =>
                el("div", {}, el("dt", {}, name, symbol ? el("i", { text: ` ${symbol}` }) : null), el("dd", { text })),
            ),
        );
        const fills = member.fills[k];
        const textOf = (token) => this.main.text(token);
        this.fills.replaceChildren(
            ...(fills ? [el("h3", { text: "Other actions drawn here" }), fillsTable(fills, member, k, textOf)] : []),
        );
        if (this.looked !== null) this.look(this.looked);
        if (!this.timer) this.said.textContent = `${where}. ${rows.map(([name, , text]) => `${name} ${text}`).join(", ")}.`;
    }

    showGuess({ title, value, note, at, guess }, isEnd) {
        this.guessHost.hidden = !isEnd && !guess;
        this.guessTitle.textContent = title;
        this.guessReward.textContent = value === undefined ? "" : number(value, 3);
        this.guessNote.textContent = note;
        if (isEnd) this.guessTokens.show(this.film.num_steps);
        else if (guess) this.guessTokens.guess(guess, at);
    }

    look(i) {
        this.looked = i;
        this.detail.textContent = detailOf(this.film, this.member, this.pick.k, i, (token) => this.main.text(token));
    }

    toggle() {
        if (this.timer) return this.stop();
        const { top, bottom } = this.player.getBoundingClientRect();
        if (top < 0 || bottom > innerHeight) this.node.scrollIntoView({ block: "start" });
        if (this.pick.k >= this.film.num_steps) this.pick.k = -1;
        const tick = async () => {
            await this.go({ k: this.pick.k + 1 }, true);
            if (!this.timer) return;
            if (this.pick.k >= this.film.num_steps) this.stop();
            else this.timer = setTimeout(tick, this.delay);
        };
        this.timer = setTimeout(tick, 0);
        this.playing(true);
    }

    stop() {
        if (!this.timer) return;
        clearTimeout(this.timer);
        this.timer = null;
        this.playing(false);
        if (this.stage && this.member) this.said.textContent = "Paused.";
    }

    playing(is) {
        this.playButton.classList.toggle("is-playing", is);
        this.playButton.setAttribute("aria-label", is ? "Pause" : "Play");
        this.playButton.querySelector(".word").textContent = is ? "Pause" : "Play";
    }

    key(event) {
        if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !this.member) return;
        const tag = event.target.tagName;
        if (tag === "INPUT" || tag === "SELECT" || tag === "TEXTAREA") return;
        const { run, group, pick } = this;
        const moves = {
            ArrowLeft: () => this.go({ k: pick.k - 1 }),
            ArrowRight: () => this.go({ k: pick.k + 1 }),
            p: () => this.go({ member: clamp(pick.member - 1, 0, group.members.length - 1) }),
            n: () => this.go({ member: clamp(pick.member + 1, 0, group.members.length - 1) }),
            "[": () => this.go({ film: clamp(pick.film - 1, 0, run.films.length - 1) }),
            "]": () => this.go({ film: clamp(pick.film + 1, 0, run.films.length - 1) }),
        };
        if (event.key === " " && tag !== "BUTTON" && tag !== "SUMMARY") moves[" "] = () => this.toggle();
        const { top, bottom } = this.node.getBoundingClientRect();
        if (!(event.key in moves) || bottom < 0 || top > innerHeight) return;
        event.preventDefault();
        moves[event.key]();
    }
}
