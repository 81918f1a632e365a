// The denoising film: a step of training, a prompt, a member of its group, and the steps in which its completion was written.

const ICONS = {
  first: "M2 2h2.5v12H2zM14 2v12L5.5 8z", back: "M11.5 2v12L3 8z", on: "M4.5 2v12L13 8z", last: "M11.5 2H14v12h-2.5zM2 2v12l8.5-6z",
  start: "M4 1.5v13L14 8z", pause: "M3.5 2h3.2v12H3.5zM9.3 2h3.2v12H9.3z", earlier: "M10.5 2L4.5 8l6 6 1.5-1.5L7.5 8 12 3.5z", later: "M5.5 2l6 6-6 6L4 12.500 8.500 8 4 3.500z",
};
const icon = (name) => draw("svg", { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true", class: name }, draw("path", { d: ICONS[name] }));
const iconButton = (label, name, onclick) => el("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick }, icon(name));

const SPEEDS = [["slow", 1400], ["normal", 700], ["fast", 220]];

class FilmSection {
  constructor(runs) {
    this.runs = runs;
    this.pick = { run: 0, film: 0, group: 0, member: 0, k: 0 };
    this.delay = 700;
    this.said = el("p", { class: "unseen", role: "status", "aria-live": "polite" });
    this.body = el("div", { class: "film-body" });
    this.node = el("section", { id: "film", "aria-labelledby": "film-title" },
      el("h2", { id: "film-title", text: "The denoising film" }),
      el("p", { class: "lead", text: "What was written when, how open each choice was, what the model would have answered had it stopped there, and what training made of it." }),
      this.controls(), this.body, this.said);
    document.addEventListener("keydown", (event) => this.key(event));
  }

  get run() { return this.runs[this.pick.run]; }

  controls() {
    const select = (label, onpick) => {
      const box = el("select", { onchange: () => onpick(Number(box.value)) });
      return { box, node: el("label", { class: "field" }, el("span", { text: label }), box) };
    };
    this.runBox = select("Run", (run) => this.go({ run, film: 0, group: 0, member: 0, k: 0 }));
    this.groupBox = select("Prompt", (group) => this.go({ group, member: 0 }));
    this.stepSlider = el("input", { type: "range", min: 0, step: 1, "aria-label": "Step of training", oninput: () => this.go({ film: Number(this.stepSlider.value) }) });
    this.stepText = el("output", {});
    const step = (by) => this.go({ film: clamp(this.pick.film + by, 0, this.run.films.length - 1) });
    this.memberHost = el("div", { class: "members-pick" });
    this.runs.forEach((run, i) => this.runBox.box.append(el("option", { value: i, text: run.name })));
    this.runBox.node.hidden = this.runs.length < 2;
    return el("div", { class: "picks" }, this.runBox.node,
      el("div", { class: "field grow" }, el("span", {}, "Step of training ", this.stepText),
        el("div", { class: "stepper" }, iconButton("Earlier kept rollout", "earlier", () => step(-1)), this.stepSlider, iconButton("Later kept rollout", "later", () => step(1)))),
      this.groupBox.node, this.memberHost);
  }

  /** Show what is picked; whatever changes is given, the rest stays where it can. */
  async go(change, isPlaying = false) {
    if (!isPlaying) this.stop();
    const before = { ...this.pick };
    Object.assign(this.pick, change);
    const { run } = this;
    this.pick.film = clamp(this.pick.film, 0, run.films.length - 1);
    const ticket = (this.ticket = {});
    const film = await block(`film-${run.index}-${run.films[this.pick.film]}`);
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
    this.runBox.box.value = pick.run;
    this.stepSlider.max = run.films.length - 1;
    this.stepSlider.value = pick.film;
    this.stepSlider.setAttribute("aria-valuetext", `step ${film.step}, kept rollout ${pick.film + 1} of ${run.films.length}`);
    this.stepText.textContent = String(film.step);
    this.groupBox.box.replaceChildren(...film.groups.map((g, i) => el("option", { value: i, text: `${i + 1}${g.prompt ? `: ${g.prompt.slice(0, 48).replace(/\s+/g, " ")}` : ""}` })));
    this.groupBox.box.value = pick.group;
    const members = choice("Member of the group", "member", group.members.map((m, i) => ({ value: i, label: `${i + 1}`, title: `reward ${number(m.reward, 3)}` })), pick.member, (i) => this.go({ member: i }));
    this.memberHost.replaceChildren(members);
    this.kinds = [...(group.layout.kind === "board" ? [["board", "Board"]] : []), ...(group.layout.kind === "code" ? [["code", "Code"]] : []), ["text", "Text"], ["tokens", "Tokens"]];
    if (!this.kinds.some(([kind]) => kind === this.kind)) this.kind = this.kinds[0][0];
    this.stage ??= this.makeStage();
    this.viewHost.replaceChildren(choice("Show as", "kind", this.kinds.map(([value, label]) => ({ value, label })), this.kind, (kind) => { this.kind = kind; this.build(); this.frame(); }));
    this.promptText.textContent = group.prompt ?? "The version that kept this rollout did not keep its prompt.";
    this.answerText.textContent = group.answer ?? "";
    this.answerRow.hidden = group.answer === null;
    const common = { film, layout: group.layout, scale: run.scale, answer: group.layout.kind === "board" ? group.answer : null };
    this.main = new Tokens({ ...common, member, kind: this.kind, size: "big", label: "Completion", onlook: (i) => this.look(i) });
    this.guessTokens = new Tokens({ ...common, member, kind: this.kind, size: "middle", label: "One-step guess" });
    this.mainHost.replaceChildren(this.main.node);
    this.guessHost.replaceChildren(this.guessTokens.node);
    this.mates = group.members.map((mate, i) => {
      const tokens = new Tokens({ ...common, member: mate, kind: this.kind, size: "small", label: `State of member ${i + 1}` });
      const best = Math.max(...group.members.map((m) => m.reward), 1e-9);
      const card = el("button", { type: "button", class: "mate", "aria-pressed": String(i === pick.member), "aria-label": `Member ${i + 1}, reward ${number(mate.reward, 3)}`, onclick: () => this.go({ member: i }) },
        tokens.node, el("span", { class: "mate-line" }, el("span", { text: `${i + 1}` }), el("span", { class: "meter", "aria-hidden": "true", vars: { "--share": clamp(mate.reward / best, 0, 1) } }), el("b", { text: number(mate.reward, 3) })));
      return { tokens, card };
    });
    this.matesHost.replaceChildren(...this.mates.map((mate) => mate.card));
    this.legendEnd.textContent = `${run.scale} nats or more`;
    const parts = [`Entropy, value and advantage of ${film.num_steps} denoising steps.`, member.selected.length ? `Trained: step k = ${member.selected.join(", ")}.` : "No step of this path was trained."];
    this.timeline.show(film, member, parts.join(" "));
    this.looked = null;
    this.detail.textContent = "Point at a token, or move to it with the keys, to read what is known of it.";
  }

  makeStage() {
    this.timeline = new Timeline((k) => this.go({ k }));
    this.playButton = el("button", { type: "button", class: "play", "aria-label": "Play", onclick: () => this.toggle() }, icon("start"), icon("pause"), el("span", { class: "word", text: "Play" }));
    this.clock = el("p", { class: "clock" });
    this.viewHost = el("div", {});
    this.mainHost = el("div", { class: "stage-main" });
    this.guessHost = el("div", { class: "stage-guess" });
    this.guessTitle = el("h3", { text: "Its guess at this step" });
    this.guessReward = el("b", { class: "figure" });
    this.guessNote = el("p", { class: "soft" });
    this.facts = el("dl", { class: "facts" });
    this.detail = el("p", { class: "detail" });
    this.fills = el("div", { class: "fills" });
    this.matesHost = el("div", { class: "mates", role: "group", "aria-label": "Group mates at the same step" });
    this.promptText = el("pre", { class: "said", dir: "auto", tabindex: 0, role: "region", "aria-label": "Prompt" });
    this.answerText = el("pre", { class: "said", dir: "auto" });
    this.answerRow = el("div", {}, el("h3", { text: "Known answer" }), this.answerText);
    this.legendEnd = el("span", {});
    const legend = el("div", { class: "legend" }, el("span", { text: "entropy when written: 0" }), el("span", { class: "ramp", "aria-hidden": "true" }), this.legendEnd,
      el("span", { class: "sign" }, el("i", { class: "sample now", "aria-hidden": "true" }), "written at this step"), el("span", { class: "sign" }, el("i", { class: "sample hidden", "aria-hidden": "true", text: HIDDEN }), "still hidden"));
    this.boardLegend = el("div", { class: "legend" }, el("span", { class: "sign" }, el("i", { class: "sample clue", "aria-hidden": "true" }), "given in the puzzle"), el("span", { class: "sign" }, el("i", { class: "sample wrong", "aria-hidden": "true" }), "not the answer"));
    const stage = el("div", { class: "stage" },
      el("div", { class: "pane" }, el("div", { class: "pane-head" }, el("h3", { text: "What is written" }), this.viewHost), this.mainHost, legend, this.boardLegend, this.detail),
      el("div", { class: "pane side" }, el("div", { class: "pane-head" }, this.guessTitle, this.guessReward), this.guessHost, this.guessNote, this.facts, this.fills));
    const transport = el("div", { class: "transport", role: "group", "aria-label": "Playing" },
      iconButton("To the first step", "first", () => this.go({ k: 0 })), iconButton("One step back", "back", () => this.go({ k: this.pick.k - 1 })), this.playButton, iconButton("One step on", "on", () => this.go({ k: this.pick.k + 1 })), iconButton("To the finished completion", "last", () => this.go({ k: this.film.num_steps })),
      choice("Speed", "speed", SPEEDS.map(([label, value]) => ({ value, label })), this.delay, (value) => { this.delay = value; }), this.clock);
    this.body.append(
      el("div", { class: "prompt" }, el("div", {}, el("h3", { text: "Prompt" }), this.promptText), this.answerRow),
      stage, transport, this.timeline.node,
      el("p", { class: "hint" }, "Keys: ", el("kbd", { text: "space" }), " plays, ", el("kbd", { text: "←" }), " ", el("kbd", { text: "→" }), " step, ", el("kbd", { text: "p" }), " ", el("kbd", { text: "n" }), " change the member, ", el("kbd", { text: "[" }), " ", el("kbd", { text: "]" }), " the step of training."),
      el("h3", { text: "Its group, at the same step" }), this.matesHost);
    return stage;
  }

  frame() {
    const { film, member, pick: { k } } = this;
    const isEnd = k >= film.num_steps;
    this.boardLegend.hidden = this.kind !== "board";
    this.main.show(k);
    for (const mate of this.mates) mate.tokens.show(k);
    const wrote = member.when.filter((w) => w === k).length;
    const where = isEnd ? `Finished after ${film.num_steps} steps` : `Step ${k + 1} of ${film.num_steps}`;
    this.clock.replaceChildren(el("b", { text: where }), el("span", { class: "soft", text: isEnd ? "" : `k = ${k}` }));
    this.timeline.slider.setAttribute("aria-valuetext", where + (isEnd ? "" : `, k = ${k}${member.selected.includes(k) ? ", trained" : ""}`));
    this.timeline.at(k);
    this.main.node.setAttribute("aria-label", `Completion, ${where.toLowerCase()}`);
    this.showGuess(k, isEnd);
    const value = isEnd ? member.reward : member.values[k];
    const isTrained = member.selected.includes(k);
    const rows = isEnd
      ? [["reward", "r", number(member.reward, 3)], ["entropy of the whole path", "Σ H", `${number(member.joint.reduce((a, b) => a + b, 0), 3)} nats`]]
      : [["tokens written", "", String(wrote)], ["step entropy", "H", wrote ? `${number(member.joint[k], 3)} nats` : "–"], ["value of the state", "V", value === undefined ? "–" : number(value, 3)],
        ["advantage", "A", member.fills[k] ? "of each action, below" : k in member.advantages ? number(member.advantages[k], 3, true) : isTrained ? "not recorded" : "–"], ["trained at this step", "", isTrained ? "yes ▲" : "no"]];
    if (member.whole !== null) rows.push(["advantage of the completion", "A", number(member.whole, 3, true)]);
    this.facts.replaceChildren(...rows.map(([name, symbol, text]) => el("div", {}, el("dt", {}, name, symbol ? el("i", { text: ` ${symbol}` }) : null), el("dd", { text }))));
    this.showFills(member.fills[k]);
    if (this.looked !== null) this.look(this.looked);
    if (!this.timer) this.said.textContent = `${where}. ${rows.map(([name, , text]) => `${name} ${text}`).join(", ")}.`;
  }

  showGuess(k, isEnd) {
    const { member } = this;
    const guess = member.guesses[k];
    this.guessHost.hidden = !isEnd && guess === undefined;
    this.guessTitle.textContent = isEnd ? "What it wrote" : "Its guess at this step";
    this.guessReward.textContent = isEnd ? number(member.reward, 3) : k in member.values ? number(member.values[k], 3) : "";
    if (isEnd) this.guessTokens.show(k);
    else if (guess) this.guessTokens.guess(guess, k);
    const anyGuess = Object.keys(member.guesses).length;
    this.guessNote.textContent = isEnd
      ? "The finished completion and its reward."
      : guess !== undefined
        ? "Had it filled every hidden place at once with its likeliest token: the reward of that is the value V of the state. Underlined: what it wrote differently in the end."
        : !member.when.includes(k)
          ? "Nothing was written at this step: the text had already ended."
          : anyGuess
            ? `Guesses were kept at steps k = ${Object.keys(member.guesses).join(", ")} only.`
            : "This run kept no one-step guesses: they are kept with log_rollouts_guesses above 0.";
    this.guessNote.classList.toggle("no-guess", guess === undefined && !isEnd);
  }

  showFills(fills) {
    if (!fills) return this.fills.replaceChildren();
    const { member, pick: { k } } = this;
    const places = member.when.map((when, i) => [when, i]).filter(([when]) => when === k).map(([, i]) => i);
    const texts = (changes) => {
      const other = new Map();
      for (let i = 0; i < changes.length; i += 2) other.set(changes[i], changes[i + 1]);
      return places.map((i) => spoken(this.main.text(other.get(i) ?? member.tokens[i]))).join(" ");
    };
    this.fills.replaceChildren(el("h3", { text: "Other actions drawn here" }),
      el("table", {}, el("thead", {}, el("tr", {}, ["tokens", "times", "reward", "advantage"].map((text) => el("th", { scope: "col", text })))),
        el("tbody", {}, fills.map((fill) => el("tr", {}, el("td", { class: "mono", text: texts(fill.changes) }), el("td", { text: `${fill.times}×` }), el("td", { text: number(fill.reward, 3) }), el("td", { text: number(fill.advantage, 3, true) }))))));
  }

  look(i) {
    this.looked = i;
    const { member, film, pick: { k } } = this;
    const when = member.when[i];
    const isLate = when >= film.num_steps;
    const isHidden = isLate ? k < film.num_steps : when > k;
    if (isHidden) { this.detail.textContent = `Position ${i}: still hidden.`; return; }
    const text = spoken(this.main.text(member.tokens[i]));
    const how = isLate ? "filled in after the text had ended" : when < 0 ? "there from the start" : `written at step ${when + 1} (k = ${when}) with probability ${number(Math.exp(member.logprob[i]), 3)}, entropy ${number(member.entropy[i], 3)} nats`;
    this.detail.textContent = `Position ${i}: “${text}”, ${how}.`;
  }

  toggle() {
    if (this.timer) return this.stop();
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
      ArrowLeft: () => this.go({ k: pick.k - 1 }), ArrowRight: () => this.go({ k: pick.k + 1 }),
      p: () => this.go({ member: clamp(pick.member - 1, 0, group.members.length - 1) }), n: () => this.go({ member: clamp(pick.member + 1, 0, group.members.length - 1) }),
      "[": () => this.go({ film: clamp(pick.film - 1, 0, run.films.length - 1) }), "]": () => this.go({ film: clamp(pick.film + 1, 0, run.films.length - 1) }),
    };
    if (event.key === " " && tag !== "BUTTON" && tag !== "SUMMARY") moves[" "] = () => this.toggle();
    const { top, bottom } = this.node.getBoundingClientRect();
    if (!(event.key in moves) || bottom < 0 || top > innerHeight) return;
    event.preventDefault();
    moves[event.key]();
  }
}
