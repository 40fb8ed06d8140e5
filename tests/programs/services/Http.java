// SPDX-License-Identifier: MIT
// Http server ROOT [PORT] | client URL ITEM… | measure SECONDS URL ITEM: the service of the tests (see app.py and client.py) by com.sun.net.httpserver and java.net.http.
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.Executors;

class Http {
  static void answer(HttpExchange exchange, Map<String, byte[]> files) throws IOException {
    byte[] sent = exchange.getRequestBody().readAllBytes();
    byte[] body = exchange.getRequestMethod().equals("POST") ? sent : files.get(exchange.getRequestURI().getPath());
    int status = body == null ? 404 : 200;
    // -1: no body; 0 would mean one of unknown length.
    exchange.sendResponseHeaders(status, body == null || body.length == 0 ? -1 : body.length);
    if (body != null && body.length > 0) exchange.getResponseBody().write(body);
    exchange.close();
  }

  static void serve(Path root, int port) throws Exception {
    Map<String, byte[]> files = new HashMap<>();
    try (var entries = Files.list(root)) {
      for (Path file : entries.filter(Files::isRegularFile).toList()) files.put("/" + file.getFileName(), Files.readAllBytes(file));
    }
    HttpServer server = HttpServer.create(new InetSocketAddress(InetAddress.getByName("127.0.0.1"), port), 1024);
    server.createContext("/", exchange -> answer(exchange, files));
    server.setExecutor(Executors.newFixedThreadPool(4));
    server.start();
    System.out.println("PORT " + server.getAddress().getPort());
  }

  static void fetch(String url, String[] items) throws Exception {
    HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    for (String item : items) {
      boolean echo = item.startsWith("+");
      byte[] body = new byte[echo ? Integer.parseInt(item.substring(1)) : 0];
      new Random().nextBytes(body);
      HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + (echo ? "/echo" : item)));
      if (echo) request.POST(HttpRequest.BodyPublishers.ofByteArray(body));
      HttpResponse<byte[]> response = client.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
      byte[] got = response.body();
      if (echo && !Arrays.equals(got, body)) throw new IOException(item + ": " + got.length + " bytes came back, and not the same");
      String sum = echo ? "echo" : HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(got));
      System.out.println(response.statusCode() + " " + got.length + " " + sum);
    }
  }

  /** One call after the other; the first tenth is not counted. Prints a line of JSON as tests/bench's `traffic` does. */
  static void measure(double seconds, URI at) throws Exception {
    HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    HttpRequest request = HttpRequest.newBuilder(at).build();
    long begin = System.nanoTime(), warm = begin + (long) (seconds * 1e8), end = begin + (long) (seconds * 1e9);
    long[] took = new long[1 << 20];
    int count = 0;
    for (long start; (start = System.nanoTime()) < end;) {
      int status = client.send(request, HttpResponse.BodyHandlers.ofByteArray()).statusCode();
      if (status != 200) throw new IOException("status " + status);
      if (start >= warm && count < took.length) took[count++] = System.nanoTime() - start;
    }
    if (count == 0) throw new IOException("not one answer in " + seconds + " s");
    Arrays.sort(took, 0, count);
    double counted = (end - warm) / 1e9;
    StringBuilder latency = new StringBuilder();
    for (var share : new Object[][] {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}, {"max", 1.0}})
      latency.append(String.format(",\"%s\":%d", share[0], took[Math.min(count - 1, (int) ((double) share[1] * count))]));
    System.out.printf("{\"kind\":\"fetch\",\"operations\":%d,\"seconds\":%s,\"operations_per_second\":%s,\"latency_ns\":{%s},\"errors\":0}%n",
        count, counted, count / counted, latency.substring(1));
  }

  public static void main(String[] arguments) throws Exception {
    if (arguments[0].equals("server")) {
      serve(Path.of(arguments[1]), arguments.length > 2 ? Integer.parseInt(arguments[2]) : 0);
      return;
    }
    if (arguments[0].equals("measure")) {
      measure(Double.parseDouble(arguments[1]), URI.create(arguments[2] + arguments[3]));
    } else {
      fetch(arguments[1].replaceAll("/$", ""), Arrays.copyOfRange(arguments, 2, arguments.length));
    }
    System.exit(0);  // the client's own threads
  }
}
