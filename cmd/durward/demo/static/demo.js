'use strict';
// The page never sees a token: the browser keeps it in an HttpOnly cookie and
// sends it along by itself.

const $ = (id) => document.getElementById(id);

// The story: which button comes next, and what must come of it.
const story = [
  ['alice', 200], ['read', 200], ['write', 403], ['bob', 200], ['write', 201], ['revoke', 200], ['read', 401],
];
let step = 0;

function showStep() {
  [...$('story').children].forEach((li, i) => { li.className = i < step ? 'done' : i === step ? 'next' : ''; });
  document.querySelectorAll('button').forEach((b) => b.classList.toggle('next', b.id === story[step]?.[0]));
}

function showWho(name) {
  $('who').textContent = name ? `Logged in as ${name[0].toUpperCase()}${name.slice(1)}` : 'Not logged in';
}

const notes = {
  login: 'The login service behind the gateway set the session cookie. This page cannot read it.',
  revoke: 'The application told the gateway to revoke this session. Your browser still has the cookie: try it.',
  out: 'The gateway revoked the token and cleared the cookie.',
  revoked: 'The cookie was there and its signature is good; the session is revoked. The gateway clears it now.',
  no_token: 'There was no cookie. Log in first.',
  token_issuer: 'This cookie is from an earlier demo, whose issuer is gone. Log in again.',
  insufficient_scope: 'The token is good, but lacks the scope that this needs.',
  forbidden: 'The token is good, but no grant of this route fits it.',
};

// A flat JSON object as lines, one level deep: easier to read on a phone.
function lines(object, indent = '') {
  return Object.entries(object).map(([key, value]) => indent + key + ': ' +
    (typeof value === 'object' ? `\n${lines(value, '  ')}` : value)).join('\n');
}

// An entry goes on top, and the one below it folds up.
function add(entry) {
  const li = document.createElement('li');
  const put = (parent, tag, text, name = '') => {
    const e = parent.appendChild(document.createElement(tag));
    e.textContent = text;
    e.className = name;
    return e;
  };
  li.className = entry.status < 400 ? 'good' : 'bad';
  Object.assign(li.dataset, { status: entry.status, reason: entry.reason });
  const details = put(li, 'details', '');
  const line = put(details, 'summary', '');
  put(line, 'b', `${entry.method} ${entry.path}`);
  put(line, 'span', entry.status || 'no answer', 'status');
  if (entry.reason) put(line, 'span', entry.reason, 'reason').title = 'the header Durward-Reason';
  if (entry.note) put(details, 'p', entry.note);
  if (entry.body) put(details, 'pre', entry.body);
  details.open = true;
  $('log').querySelector('details')?.removeAttribute('open');
  $('log').prepend(li);
  $('empty').hidden = true;
}

async function press(button) {
  const { user } = button.dataset;
  const { method, path } = user ? { method: 'POST', path: '/login/' } : button.dataset;
  const entry = { method, path: user ? `${path} (${user})` : path, status: 0, reason: '', note: '', body: '' };
  try {
    const options = { method, headers: { Accept: 'application/json' } };
    if (user) options.body = new URLSearchParams({ user, return_to: '/whoami' });
    const res = await fetch(path, options);
    entry.status = res.status;
    entry.reason = res.headers.get('Durward-Reason') ?? '';
    entry.body = await res.text();
    if (entry.body) entry.body = lines(JSON.parse(entry.body));
    entry.note = notes[entry.reason] ?? (res.ok ? notes[user ? 'login' : button.id] : '') ?? '';
    if (user && res.ok) showWho(user);
    if (button.id === 'out' || ['revoked', 'no_token'].includes(entry.reason)) showWho('');
  } catch (err) {
    entry.note ||= `The gateway did not answer as expected: ${err.message}`;
  }
  add(entry);
  const [id, status] = story[step] ?? [];
  if (button.id === id && entry.status === status) step++;
  showStep();
}

document.querySelectorAll('button').forEach((button) => {
  button.addEventListener('click', async () => {
    button.disabled = true;
    await press(button);
    button.disabled = false;
  });
});

// Whose cookie is here from before? Without one this is let through, too.
fetch('/whoami').then((res) => res.json()).then((json) => showWho(json.headers?.['X-Forwarded-User'] ?? '')).catch(() => {});
showStep();
