// The viewer of a report. Volumes are NIfTI files of eight bits, compressed, in the page itself.
"use strict";
(() => {
  const body = document.body;
  const say = (key, text) => { body.dataset[key] = text; };
  const fail = (text) => {
    say("errors", (body.dataset.errors ? body.dataset.errors + " | " : "") + text);
  };
  window.addEventListener("error", (event) => fail(event.message));
  window.addEventListener("unhandledrejection", (event) => fail(String(event.reason)));

  const $ = (id) => document.getElementById(id);
  const content = JSON.parse($("volumes").textContent);
  const HEADER = 352;
  const state = { number: -1, channel: 0, mask: true, opacity: 0.7, at: [0, 0, 0], files: [] };
  let niivue = null;

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  function parsed(buffer) {
    const view = new DataView(buffer);
    const number = (count, at, step, read) =>
      Array.from({ length: count }, (_, i) => view[read](at + step * i, true));
    return {
      buffer,
      shape: number(3, 42, 2, "getInt16"),
      spacing: number(3, 80, 4, "getFloat32"),
      voxels: new Uint8Array(buffer, HEADER),
    };
  }

  const colours = content.labels.map(({ colour }) =>
    [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  const colourOf = (label) => colours[(label - 1) % Math.max(1, colours.length)] || [255, 160, 10];

  // -- three planes on canvases ------------------------------------------------------------------

  const PLANES = [
    { axis: 2, across: 0, up: 1, name: "axial" },
    { axis: 1, across: 0, up: 2, name: "coronal" },
    { axis: 0, across: 1, up: 2, name: "sagittal" },
  ];

  function drawPlane(plane) {
    const image = state.files[state.channel];
    const mask = state.files[state.files.length - 1];
    const { shape, spacing } = image;
    const [wide, high] = [shape[plane.across], shape[plane.up]];
    const canvas = plane.canvas;
    const strides = [1, shape[0], shape[0] * shape[1]];
    const base = state.at[plane.axis] * strides[plane.axis];
    const pixels = new ImageData(wide, high);
    for (let row = 0; row < high; row += 1) {
      for (let column = 0; column < wide; column += 1) {
        // The patient's right is on the left, anterior or superior on top.
        const index = base + (wide - 1 - column) * strides[plane.across]
          + (high - 1 - row) * strides[plane.up];
        const grey = image.voxels[index];
        const label = state.mask ? mask.voxels[index] : 0;
        const colour = label ? colourOf(label) : null;
        const share = colour ? state.opacity : 0;
        const to = 4 * (row * wide + column);
        for (let part = 0; part < 3; part += 1) {
          pixels.data[to + part] = grey * (1 - share) + (colour ? colour[part] * share : 0);
        }
        pixels.data[to + 3] = 255;
      }
    }
    const small = new OffscreenCanvas(wide, high);
    small.getContext("2d").putImageData(pixels, 0, 0);
    const size = [wide * spacing[plane.across], high * spacing[plane.up]];
    const scale = 2 * Math.min(236 / size[0], 236 / size[1]);
    canvas.width = Math.round(size[0] * scale);
    canvas.height = Math.round(size[1] * scale);
    canvas.style.width = `${canvas.width / 2}px`;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    const x = (wide - 0.5 - state.at[plane.across]) * canvas.width / wide;
    const y = (high - 0.5 - state.at[plane.up]) * canvas.height / high;
    context.strokeStyle = "rgba(120, 200, 255, 0.6)";
    context.beginPath();
    context.moveTo(x, 0);
    context.lineTo(x, canvas.height);
    context.moveTo(0, y);
    context.lineTo(canvas.width, y);
    context.stroke();
    plane.slider.max = shape[plane.axis] - 1;
    plane.slider.value = state.at[plane.axis];
    plane.text.textContent = `${plane.name} ${state.at[plane.axis] + 1} of ${shape[plane.axis]}`;
  }

  const draw = () => PLANES.forEach(drawPlane);

  function move(axis, to) {
    const limit = state.files[0].shape[axis] - 1;
    state.at[axis] = Math.max(0, Math.min(limit, Math.round(to)));
    draw();
  }

  function makePlane(plane) {
    const box = document.createElement("figure");
    plane.canvas = document.createElement("canvas");
    plane.slider = Object.assign(document.createElement("input"), { type: "range", min: 0 });
    plane.slider.setAttribute("aria-label", `${plane.name} slice`);
    plane.text = document.createElement("figcaption");
    box.append(plane.canvas, plane.slider, plane.text);
    $("planes").append(box);
    plane.slider.addEventListener("input", () => move(plane.axis, Number(plane.slider.value)));
    plane.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      move(plane.axis, state.at[plane.axis] - Math.sign(event.deltaY));
    }, { passive: false });
    plane.canvas.addEventListener("click", (event) => {
      const { shape } = state.files[0];
      const box = plane.canvas.getBoundingClientRect();
      const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      state.at[plane.across] = Math.min(shape[plane.across] - 1,
        Math.floor((1 - x) * shape[plane.across]));
      move(plane.up, Math.floor((1 - y) * shape[plane.up]));
    });
  }

  // Where the mask has most voxels along each axis, or else the middle.
  function start() {
    const mask = state.files[state.files.length - 1];
    const counts = mask.shape.map((n) => new Uint32Array(n));
    let index = 0;
    for (let k = 0; k < mask.shape[2]; k += 1) {
      for (let j = 0; j < mask.shape[1]; j += 1) {
        for (let i = 0; i < mask.shape[0]; i += 1, index += 1) {
          if (mask.voxels[index]) { counts[0][i] += 1; counts[1][j] += 1; counts[2][k] += 1; }
        }
      }
    }
    state.at = counts.map((each) => {
      const most = each.reduce((best, n) => Math.max(best, n), 0);
      return most ? each.indexOf(most) : Math.floor(each.length / 2);
    });
  }

  // -- NiiVue ------------------------------------------------------------------------------------

  async function startNiivue() {
    const packed = $("niivue-module").textContent.trim();
    if (!packed) return;
    try {
      const source = await unpacked(packed);
      const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      const { Niivue } = await import(url);
      URL.revokeObjectURL(url);
      niivue = new Niivue({
        backColor: [0.09, 0.1, 0.11, 1], show3Dcrosshair: true, isColorbar: false,
        multiplanarShowRender: 1, isRadiologicalConvention: true, logLevel: "error",
        dragAndDropEnabled: false, crosshairWidth: 0.25, crosshairColor: [0.5, 0.8, 1, 0.7],
      });
      await niivue.attachToCanvas($("niivue"), true);
      niivue.setSliceType(niivue.sliceTypeMultiplanar);
      $("modes").hidden = false;
      showMode();
    } catch (error) {
      // Such as no WebGL 2: the planes above stay.
      niivue = null;
      say("niivue", "unavailable");
      $("viewer-note").textContent =
        `Volume rendering is not available in this browser (${error.message || error}).`;
    }
  }

  async function showInNiivue() {
    if (!niivue || !state.files.length) return;
    const number = state.number;
    while (niivue.volumes.length) niivue.removeVolumeByIndex(0);
    const image = state.files[state.channel];
    const mask = state.files[state.files.length - 1];
    await niivue.loadFromArrayBuffer(image.buffer.slice(0), "image.nii");
    await niivue.loadFromArrayBuffer(mask.buffer.slice(0), "mask.nii");
    if (number !== state.number) return;
    // What is black and white was settled for all cases together.
    Object.assign(niivue.volumes[0], { cal_min: 0, cal_max: 255 });
    niivue.scene.crosshairPos = niivue.vox2frac(state.at);
    const part = (which) => [0, ...colours.map((colour) => colour[which])];
    niivue.volumes[1].setColormapLabel({
      R: part(0), G: part(1), B: part(2), A: [0, ...colours.map(() => 255)],
      labels: ["", ...content.labels.map(({ name }) => name)],
    });
    niivue.setOpacity(1, state.mask ? state.opacity : 0);
    niivue.setInterpolation(true);
    say("niivue", `loaded ${image.shape.join(" x ")}`);
  }

  function showMode() {
    const isVolume = niivue !== null && $("mode-volume").checked;
    $("niivue-box").hidden = !isVolume;
    $("planes").hidden = isVolume;
    if (isVolume) {
      niivue.resizeListener();
      niivue.drawScene();
    }
  }

  // -- what is shown -----------------------------------------------------------------------------

  async function show(number) {
    const entry = content.cases[number];
    state.number = number;
    const files = await Promise.all(entry.files.map(unpacked));
    if (number !== state.number) return;
    state.files = files.map(parsed);
    state.channel = Math.min(state.channel, state.files.length - 2);
    start();
    draw();
    $("viewer-case").textContent = `${entry.name} (${entry.kind})`
      + (entry.step > 1 ? `, every ${entry.step} voxels averaged to one` : "");
    const { shape, voxels } = state.files[state.files.length - 1];
    const inside = voxels.reduce((sum, label) => sum + (label > 0), 0);
    say("viewer", `loaded ${entry.name} ${shape.join(" x ")} ${inside}`);
    await showInNiivue();
  }

  function options(select, names) {
    names.forEach((name, value) => select.append(new Option(name, value)));
    select.disabled = names.length < 2;
  }

  PLANES.forEach(makePlane);
  options($("case"), content.cases.map(({ name, kind }) => `${kind}: ${name}`));
  options($("channel"), content.channels);
  $("case").addEventListener("change", (event) => show(Number(event.target.value)));
  $("channel").addEventListener("change", (event) => {
    state.channel = Number(event.target.value);
    draw();
    showInNiivue();
  });
  const restyle = () => {
    state.mask = $("mask").checked;
    state.opacity = Number($("opacity").value) / 100;
    draw();
    if (niivue && niivue.volumes.length > 1) {
      niivue.setOpacity(1, state.mask ? state.opacity : 0);
    }
  };
  $("mask").addEventListener("change", restyle);
  $("opacity").addEventListener("input", restyle);
  document.querySelectorAll("input[name=mode]").forEach((each) =>
    each.addEventListener("change", showMode));
  show(0).then(startNiivue).then(showInNiivue);
})();
