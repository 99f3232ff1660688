// An OpenID provider on loopback for the end-to-end tests: oidc-provider as it is, with ES256 keys, three users
// and JWT access tokens of type at+jwt (RFC 9068) for one resource.
//
//     node idp.mjs
//
// prints one line "ready http://127.0.0.1:PORT" on stdout once it listens, and runs until it is killed.
//
//     PORT      where to listen; 0 (the default) is a free port. It is part of the issuer's name.
//     RESOURCE  the audience of every access token, an absolute URI (RFC 8707 2); default "https://orders.test/"
//     AT_TTL    seconds that an access token lives; default 300
//
// A token without a browser, for alice, bob or carol, in a handful of requests that any HTTP client makes by itself:
//
//  1. GET {issuer}/auth?client_id=tests&response_type=code&redirect_uri=http://127.0.0.1/callback
//         &scope=openid orders:read orders:write&login_hint=alice
//         &code_challenge=BASE64URL(SHA256(verifier))&code_challenge_method=S256
//     Keep cookies and follow the redirects that stay at the issuer. The last one goes to redirect_uri?code=...;
//     nobody need listen there, and its port is free to choose (RFC 8252 7.3). The cookies are the session: a new
//     jar for each user, because in bob's one stays bob, whatever the hint.
//  2. POST {issuer}/token  (application/x-www-form-urlencoded, no client authentication)
//         grant_type=authorization_code&client_id=tests&code=...&redirect_uri=(the same)&code_verifier=...
//     answers JSON with access_token, id_token and the scope that the user may have.
//
// Without login_hint, /auth ends at a page with one button for each user. acr_values=mfa makes a login of acr "mfa"
// (else "pwd"), max_age=N one that is at most N seconds old, prompt=login a fresh one.
//
// POST {issuer}/test/rotate-keys?keep=N makes a new signing key and publishes it with the newest of the
// old ones, N keys in all: 2 (the default) is an ordinary rotation, 1 withdraws every older key. Answers the kids,
// newest first. Sessions are forgotten.

import crypto from 'node:crypto';
import http from 'node:http';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { Provider, errors, interactionPolicy } from 'oidc-provider';

const { PORT = '0', RESOURCE = 'https://orders.test/', AT_TTL = '300' } = process.env;

// email and name are there for the identity headers, one name with letters that no header can carry as they are;
// alice and bob are in no group at all.
const users = {
  alice: { scope: 'orders:read', name: 'Alice', email: 'alice@example.test' },
  bob: { scope: 'orders:read orders:write', name: 'Bob', email: 'bob@example.test' },
  carol: { scope: 'orders:read orders:write', name: 'Carol Ærø', email: 'carol@example.test', groups: ['admin'] },
};

const newKey = () => {
  const { privateKey } = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'ES256', kid: crypto.randomUUID() };
};

// acr_values is only a wish in OpenID Connect, and oidc-provider does not ask a live session again for it.
// A step-up (RFC 9470) needs it to be heard.
const policy = interactionPolicy.base();
policy.get('login').checks.add(new interactionPolicy.Check('acr_not_met', 'a stronger login is needed', ({ oidc }) => {
  const wanted = oidc.params.acr_values?.split(' ') ?? [];
  return wanted.length > 0 && !wanted.includes(oidc.session.acr) && !oidc.result?.login;
}));
// Nobody is asked for consent. It would be asked for over and over, for every scope that a user may not have.
policy.remove('consent');

const configuration = (keys) => ({
  jwks: { keys },
  cookies: { keys: ['for tests only'] },
  clients: [{
    client_id: 'tests',
    application_type: 'native', // any port in redirect_uri
    redirect_uris: ['http://127.0.0.1/callback'],
    token_endpoint_auth_method: 'none',
    id_token_signed_response_alg: 'ES256',
  }],
  clientBasedCORS: () => true, // a page may fetch its own token
  scopes: ['openid'],
  acrValues: ['pwd', 'mfa'],
  interactions: { policy, url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
  findAccount: (_ctx, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
  features: {
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => RESOURCE,
      useGrantedResource: () => true,
      getResourceServerInfo: (_ctx, resource) => {
        if (resource !== RESOURCE) throw new errors.InvalidTarget();
        return {
          audience: RESOURCE,
          scope: 'orders:read orders:write',
          accessTokenFormat: 'jwt',
          accessTokenTTL: Number(AT_TTL),
          jwt: { sign: { alg: 'ES256' } },
        };
      },
    },
  },
  // What is asked for is granted as far as the user may have it.
  loadExistingGrant: async ({ oidc }) => {
    const grant = new oidc.provider.Grant({ clientId: oidc.client.clientId, accountId: oidc.session.accountId });
    grant.addOIDCScope('openid');
    grant.addResourceScope(RESOURCE, users[oidc.session.accountId].scope);
    await grant.save();
    return grant;
  },
  // The claims of the login (RFC 9068 2.2.1), which oidc-provider leaves out of access tokens, and the user's own.
  extraTokenClaims: async ({ oidc }, token) => {
    const session = await oidc.provider.Session.findByUid(token.sessionUid);
    const { name, email, groups } = users[token.accountId];
    return { sid: session.sidFor(token.clientId), auth_time: session.loginTs, acr: session.acr, name, email, groups };
  },
  ttl: { AccessToken: Number(AT_TTL), AuthorizationCode: 60, Grant: 3600, IdToken: 300, Interaction: 600, Session: 3600 },
  renderError: (ctx, out) => { ctx.body = out; }, // as JSON
});

const server = http.createServer();
server.listen(Number(PORT), '127.0.0.1');
await once(server, 'listening');

const issuer = `http://127.0.0.1:${server.address().port}`;
let keys = [newKey()];
let provider = new Provider(issuer, configuration(keys));

const rotateKeys = (keep) => {
  keys = [newKey(), ...keys].slice(0, keep);
  provider = new Provider(issuer, configuration(keys));
  return keys.map((key) => key.kid);
};

// The user is who the form, or else the hint, says; without either, the form is shown.
const login = async (req, res) => {
  const { params } = await provider.interactionDetails(req, res);
  const accountId = req.method === 'POST' ? new URLSearchParams(await text(req)).get('user') : params.login_hint;
  if (!Object.hasOwn(users, accountId ?? '')) {
    const buttons = Object.keys(users).map((user) => `<button name="user" value="${user}">${user}</button>`).join('\n');
    res.writeHead(200, { 'content-type': 'text/html; charset=utf-8' });
    res.end(`<!doctype html>\n<title>Sign in</title>\n<h1>Who are you?</h1>\n<form method="post">\n${buttons}\n</form>\n`);
    return;
  }
  const acr = params.acr_values?.split(' ').includes('mfa') ? 'mfa' : 'pwd';
  await provider.interactionFinished(req, res, { login: { accountId, acr } });
};

server.on('request', async (req, res) => {
  const url = new URL(req.url, issuer);
  try {
    if (url.pathname.startsWith('/interaction/')) {
      await login(req, res);
    } else if (url.pathname === '/test/rotate-keys' && req.method === 'POST') {
      const kids = rotateKeys(Number(url.searchParams.get('keep') ?? 2));
      res.writeHead(200, { 'content-type': 'application/json' });
      res.end(JSON.stringify(kids));
    } else {
      await provider.callback()(req, res);
    }
  } catch (err) {
    res.writeHead(500, { 'content-type': 'text/plain; charset=utf-8' });
    res.end(`${err.name}: ${err.message}\n`);
  }
});

console.log(`ready ${issuer}`);
